"""Pictures and figures about adapters and bases."""

from lorakit.analysis.adapter_analysis import AdapterAnalysis, RankChoice, analyze_adapter
from lorakit.analysis.adapter_comparison import (
    AdapterComparison,
    ModuleSimilarity,
    compare_adapters,
)
from lorakit.analysis.amplification import Amplification, amplifications
from lorakit.analysis.layer_similarity import LayerSimilarity, layer_similarities
from lorakit.analysis.plots.quantization import plot_quantization_errors
from lorakit.analysis.report import write_report
from lorakit.analysis.spectrum import (
    UpdateSvd,
    effective_rank,
    energy_kept,
    rank_for,
    update_svds,
    what_is_left_out,
)
from lorakit.analysis.subspace import expected_similarity, random_similarity, similarity

__all__ = [
    "AdapterAnalysis",
    "AdapterComparison",
    "Amplification",
    "LayerSimilarity",
    "ModuleSimilarity",
    "RankChoice",
    "UpdateSvd",
    "amplifications",
    "analyze_adapter",
    "compare_adapters",
    "effective_rank",
    "energy_kept",
    "expected_similarity",
    "layer_similarities",
    "plot_quantization_errors",
    "random_similarity",
    "rank_for",
    "similarity",
    "update_svds",
    "what_is_left_out",
    "write_report",
]

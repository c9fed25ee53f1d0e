"""Measurements, reports and plots of adapters, bases and runs; imported when first used."""

import typing as _typing

from lorakit.libraries.lazy_names import lazy_names as _lazy_names

if _typing.TYPE_CHECKING:
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

__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "lorakit.analysis.adapter_analysis": ("AdapterAnalysis", "RankChoice", "analyze_adapter"),
        "lorakit.analysis.adapter_comparison": (
            "AdapterComparison",
            "ModuleSimilarity",
            "compare_adapters",
        ),
        "lorakit.analysis.amplification": ("Amplification", "amplifications"),
        "lorakit.analysis.layer_similarity": ("LayerSimilarity", "layer_similarities"),
        "lorakit.analysis.plots.quantization": ("plot_quantization_errors",),
        "lorakit.analysis.report": ("write_report",),
        "lorakit.analysis.spectrum": (
            "UpdateSvd",
            "effective_rank",
            "energy_kept",
            "rank_for",
            "update_svds",
            "what_is_left_out",
        ),
        "lorakit.analysis.subspace": ("expected_similarity", "random_similarity", "similarity"),
    },
)

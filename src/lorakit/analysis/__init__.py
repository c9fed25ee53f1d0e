"""Measurements, reports and plots of adapters, bases and runs; imported when first used."""

import typing as _typing
from importlib import import_module as _import_module

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

_HOMES = {
    "AdapterAnalysis": "lorakit.analysis.adapter_analysis",
    "AdapterComparison": "lorakit.analysis.adapter_comparison",
    "Amplification": "lorakit.analysis.amplification",
    "LayerSimilarity": "lorakit.analysis.layer_similarity",
    "ModuleSimilarity": "lorakit.analysis.adapter_comparison",
    "RankChoice": "lorakit.analysis.adapter_analysis",
    "UpdateSvd": "lorakit.analysis.spectrum",
    "amplifications": "lorakit.analysis.amplification",
    "analyze_adapter": "lorakit.analysis.adapter_analysis",
    "compare_adapters": "lorakit.analysis.adapter_comparison",
    "effective_rank": "lorakit.analysis.spectrum",
    "energy_kept": "lorakit.analysis.spectrum",
    "expected_similarity": "lorakit.analysis.subspace",
    "layer_similarities": "lorakit.analysis.layer_similarity",
    "plot_quantization_errors": "lorakit.analysis.plots.quantization",
    "random_similarity": "lorakit.analysis.subspace",
    "rank_for": "lorakit.analysis.spectrum",
    "similarity": "lorakit.analysis.subspace",
    "update_svds": "lorakit.analysis.spectrum",
    "what_is_left_out": "lorakit.analysis.spectrum",
    "write_report": "lorakit.analysis.report",
}


def __getattr__(name: str) -> _typing.Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})

"""Write report.md, tables and plots about one or two adapters into a new directory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorakit.analysis.adapter_analysis import AdapterAnalysis
from lorakit.analysis.adapter_comparison import AdapterComparison
from lorakit.analysis.plots.amplification import plot_amplification
from lorakit.analysis.plots.similarity import (
    plot_layer_similarity,
    plot_similarity,
    plot_similarity_by_layer,
)
from lorakit.analysis.plots.spectra import plot_energy, plot_layers, plot_spectra
from lorakit.analysis.report_text import adapter_sections, comparison_sections, recommendation
from lorakit.files.atomic import creating_directory, require_new_directory, write_text

REPORT_NAME = "report.md"
LAYERS_NAME = "layers.csv"
SIMILARITY_NAME = "similarity.csv"
_TOP = 4


def write_report(
    output: str | Path,
    analysis: AdapterAnalysis,
    comparison: AdapterComparison | None = None,
    *,
    base_note: str | None = None,
) -> list[Path]:
    """Write a report about an adapter, or about two that were compared.

    The directory contains report.md, layers.csv (one row for each module), the plots, and for two
    adapters similarity.csv; it appears complete or not at all.

    Args:
        output: New or empty directory.
        analysis: Analysis of the adapter, or of the first of two.
        comparison: Comparison with a second adapter; `analysis` is its first.
        base_note: Sentence on why amplification factors are left out.

    Returns: The paths written, the report first.

    Raises:
        OutputExistsError: `output` holds files already.
    """
    output = Path(output)
    refuse_occupied(output)
    analyses = [analysis] if comparison is None else [analysis, comparison.second]
    with creating_directory(output) as partial:
        sections = [f"# {' and '.join(one.name for one in analyses)}, analysed"]
        if comparison is not None:
            sections.append("\n".join(f"- {recommendation(one)}" for one in analyses))
            pictures = _draw_comparison(comparison, partial)
            sections += comparison_sections(comparison, pictures)
            rows = similarity_rows(comparison)
            write_text(partial / SIMILARITY_NAME, csv_text(rows))
        for number, one in enumerate(analyses, start=1):
            prefix = f"{number}-" if comparison is not None else ""
            pictures = _draw_adapter(one, partial, prefix)
            if comparison is not None:
                sections.append(f"## {one.name}")
            level = "##" if comparison is None else "###"
            sections += adapter_sections(one, pictures, level, base_note)
        sections += ["## Files", _files_text(comparison is not None)]
        write_text(
            partial / LAYERS_NAME, csv_text([row for a in analyses for row in layer_rows(a)])
        )
        text = "\n\n".join(section for section in sections if section) + "\n"
        write_text(partial / REPORT_NAME, text)
        names = sorted(path.name for path in partial.iterdir())
    names.sort(key=lambda name: (name != REPORT_NAME, not name.endswith(".csv")))
    return [output / name for name in names]


def refuse_occupied(output: str | Path) -> None:
    """Refuse an output that is a file or a directory with files.

    Raises:
        OutputExistsError: The output is occupied.
    """
    step = "Name another one (--output on the command line), or remove it."
    require_new_directory(Path(output), "the analysis", step)


def layer_rows(analysis: AdapterAnalysis) -> list[dict[str, Any]]:
    """Return the measurements of every module as rows of layers.csv."""
    amplified = {found.path: found for found in analysis.amplifications}
    choices = [analysis.rank_choice(share) for share in analysis.shares()]
    rows = []
    for update in analysis.updates:
        place, found = analysis.places[update.path], amplified.get(update.path)
        rows.append(
            {
                "adapter": analysis.name,
                "module": update.path,
                "kind": place.kind,
                "layer": place.layer,
                "in_features": update.in_features,
                "out_features": update.out_features,
                "r": update.r,
                "rank": update.rank,
                "norm": update.norm,
                "spectral_norm": update.spectral_norm,
                "effective_rank": update.effective_rank,
                "stable_rank": update.stable_rank,
                **{
                    f"rank_for_{choice.share:g}": choice.per_module[update.path]
                    for choice in choices
                },
                "base_norm": found and found.base_norm,
                "base_norm_along_update": found and found.along_update,
                "base_norm_along_base": found and found.along_base,
                "base_norm_along_random": found and found.along_random,
                "amplification_factor": found and found.factor,
            }
        )
    return rows


def similarity_rows(comparison: AdapterComparison) -> list[dict[str, Any]]:
    """Return φ of every module as rows of similarity.csv.

    A row has φ(i, j) for i and j of 1, 4 and all, limited by the ranks, with the mean of random
    directions.
    """
    rows = []
    for module in comparison.modules:
        place = comparison.first.places[module.path]
        r1, r2 = module.inputs.shape
        expected_inputs, expected_outputs = module.expected_inputs, module.expected_outputs
        for i in sorted({1, min(_TOP, r1), r1}):
            for j in sorted({1, min(_TOP, r2), r2}):
                at = (i - 1, j - 1)
                rows.append(
                    {
                        "first": comparison.first.name,
                        "second": comparison.second.name,
                        "module": module.path,
                        "kind": place.kind,
                        "layer": place.layer,
                        "i": i,
                        "j": j,
                        "phi_input": module.inputs[at].item(),
                        "random_input": expected_inputs[at].item(),
                        "phi_output": module.outputs[at].item(),
                        "random_output": expected_outputs[at].item(),
                        "phi_A": module.factor_A[at].item(),
                    }
                )
    return rows


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, floats with six significant digits, None as empty cells."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return stream.getvalue()


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def _draw_adapter(analysis: AdapterAnalysis, directory: Path, prefix: str) -> dict[str, str]:
    """Draw the plots of one adapter; return their file names by subject."""
    pictures = _names(prefix, ("energy", "spectra", "layers"))
    plot_energy(analysis, directory / pictures["energy"])
    plot_spectra(analysis, directory / pictures["spectra"])
    plot_layers(analysis, directory / pictures["layers"])
    for found in analysis.layer_similarities:
        name = f"{prefix}similarity-{found.in_features}.png"
        pictures[f"similarity {found.in_features}"] = name
        plot_layer_similarity(analysis, found, directory / name)
    if analysis.amplifications:
        pictures |= _names(prefix, ("amplification",))
        plot_amplification(analysis, directory / pictures["amplification"])
    return pictures


def _draw_comparison(comparison: AdapterComparison, directory: Path) -> dict[str, str]:
    pictures = _names("", ("similarity", "similarity by layer"))
    plot_similarity(comparison, directory / pictures["similarity"])
    plot_similarity_by_layer(comparison, directory / pictures["similarity by layer"])
    return pictures


def _names(prefix: str, subjects: Iterable[str]) -> dict[str, str]:
    return {subject: f"{prefix}{subject.replace(' ', '-')}.png" for subject in subjects}


def _files_text(has_two: bool) -> str:
    text = f"`{LAYERS_NAME}` has the measurements of every module."
    if has_two:
        text += f" `{SIMILARITY_NAME}` has φ of every shared module."
    return text

"""Plot the quantization error of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from lorakit.analysis.plots.figures import new_figure
from lorakit.analysis.plots.png import save_png
from lorakit.quantization.error import LayerError

_MARKERS = "osD^v"
_NEAR = 0.05
"""Lines whose means differ by less than this share overlap."""


def plot_quantization_errors(errors: Sequence[LayerError], path: Path, title: str) -> None:
    """Plot the relative error of every layer, a line for each scheme, as a PNG.

    Schemes may differ by less than the width of a line. A line that a later one would hide is drawn
    as a wide pale band with larger points.

    Args:
        errors: Errors in the order of the layers.
        path: File to write.
        title: Name of the model.
    """
    layers = list(dict.fromkeys(error.path for error in errors))
    place = {layer: number for number, layer in enumerate(layers)}
    figure = new_figure(5.6, max(7.0, 2 + 0.16 * len(layers)))
    axes = figure.subplots()
    schemes = list(dict.fromkeys(error.scheme for error in errors))
    means = [fmean(error.relative for error in errors if error.scheme == s) for s in schemes]
    for number, scheme in enumerate(schemes):
        of_scheme = [error for error in errors if error.scheme == scheme]
        covering = sum(abs(later - means[number]) <= _NEAR * later for later in means[number + 1 :])
        axes.plot(
            [place[error.path] for error in of_scheme],
            [error.relative for error in of_scheme],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4 + 5 * covering,
            markeredgewidth=0,
            linewidth=1 + 4 * covering,
            alpha=0.5 if covering else 1,
            label=scheme,
        )
    axes.set_title(f"Quantization error of each layer of {title}")
    axes.set_ylabel("relative error ‖W − Ŵ‖ / ‖W‖")
    axes.set_yscale("log")
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=6 if len(layers) > 20 else 8)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_xlabel("layer")
    axes.grid(axis="y", alpha=0.3, which="both")
    figure.legend(title="scheme", ncols=len(schemes), loc="outside lower center", fontsize=9)
    save_png(figure, path)

"""A picture of what quantising costs each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorakit.png import save_png
from lorakit.quantization.error import LayerError

_MARKERS = "osD^v"


def plot_quantization_errors(errors: Sequence[LayerError], path: Path, title: str) -> None:
    """Draw the relative error of every layer, a line for each scheme, as a PNG.

    Args:
        errors: In the order of the model's layers.
        path: The file to write.
        title: What the model is called.
    """
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(error.path for error in errors))
    place = {layer: number for number, layer in enumerate(layers)}
    figure = Figure(figsize=(max(7.0, 2 + 0.16 * len(layers)), 5.2), layout="constrained")
    axes = figure.subplots()
    for number, scheme in enumerate(dict.fromkeys(error.scheme for error in errors)):
        own = [error for error in errors if error.scheme == scheme]
        axes.plot(
            [place[error.path] for error in own],
            [error.relative for error in own],
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=4,
            linewidth=1,
            linestyle="-" if "double" not in scheme else "--",
            label=scheme,
        )
    axes.set_title(f"What quantising costs each layer of {title}")
    axes.set_ylabel("relative error ‖W − Ŵ‖ / ‖W‖")
    axes.set_yscale("log")
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=6 if len(layers) > 20 else 8)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.grid(axis="y", alpha=0.3, which="both")
    axes.legend(title="scheme", ncols=3, loc="best")
    save_png(figure, path)

"""Plots of one adapter: singular values, energy, and layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lorakit.analysis.adapter_analysis import AdapterAnalysis
from lorakit.analysis.plots.figures import legend_beside, new_figure, styles
from lorakit.analysis.plots.png import save_png
from lorakit.analysis.report_text import percent
from lorakit.analysis.spectrum import UpdateSvd, pooled_energy
from lorakit.injection.selection.variants import variants_of

_NUMBERED_LAYERS, _NUMBERED_KINDS = 12, 12
"""Largest numbers of layers and kinds of a heat map with numbers in its cells."""
_OUTSIDE = "none"

EMPTY = "#dddddd"
"""Colour of a cell without a value."""


def plot_spectra(analysis: AdapterAnalysis, path: Path) -> None:
    """Plot the singular values of every update as thin lines, and medians as thick lines."""
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(4.6)
    axes = figure.add_subplot()
    marker = "o" if analysis.largest_r == 1 else ""
    look = styles(list(analysis.kinds))
    for kind, updates in analysis.kinds.items():
        values = [update.singular_values[: update.rank] for update in updates if not update.is_zero]
        for curve in values if len(values) > 1 else ():
            _line(axes, curve, alpha=0.3, linewidth=0.8, marker=marker, **look[kind])
        if values:
            label = kind if len(values) == 1 else f"{kind} ({len(values)})"
            _line(axes, _median(values), linewidth=2.2, marker=marker, label=label, **look[kind])
    axes.set_yscale("log")
    axes.set_xlim(0.5, analysis.largest_r + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_title(f"Singular values of ΔW in {analysis.name}")
    axes.set_xlabel("index i of the singular value (1 is the largest)")
    axes.set_ylabel("singular value σᵢ, in units of the weight")
    axes.grid(alpha=0.3, which="both")
    several = any(len(updates) > 1 for updates in analysis.kinds.values())
    title = "module (layers)\nthick: median" if several else "module"
    legend_beside(axes, title, len(analysis.kinds))
    save_png(figure, path)


def plot_energy(analysis: AdapterAnalysis, path: Path) -> None:
    """Plot the share of the energy that each rank keeps, by kind and for all modules."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = new_figure(4.6)
    axes = figure.add_subplot()
    look = styles(list(analysis.kinds))
    for kind, updates in analysis.kinds.items():
        if not all(update.is_zero for update in updates):
            curve = pooled_energy([update.singular_values for update in updates])
            axes.plot(range(len(curve)), curve.tolist(), linewidth=1.2, label=kind, **look[kind])
    whole = pooled_energy([update.singular_values for update in analysis.updates])
    axes.plot(range(len(whole)), whole.tolist(), color="black", linewidth=3, label="all modules")
    axes.set_ylim(0, 1.03)
    axes.set_xlim(0, len(whole) - 1)
    choices = [analysis.rank_choice(share) for share in analysis.shares()]
    kept_by_rank = {choice.together: choice.kept_together for choice in choices}
    for number, (rank, kept) in enumerate(kept_by_rank.items()):
        axes.plot([rank], [kept], "o", color="black", markersize=8, zorder=5, clip_on=False)
        _note(axes, f"rank {rank} keeps {percent(kept)}", rank, kept, number)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(f"Energy of ΔW that a lower rank keeps, in {analysis.name}")
    axes.set_xlabel("rank k that each update is cut to")
    axes.set_ylabel("energy kept, Σσᵢ² of i ≤ k / Σσᵢ²")
    axes.grid(alpha=0.3)
    legend_beside(axes, "modules", len(analysis.kinds))
    save_png(figure, path)


def plot_layers(analysis: AdapterAnalysis, path: Path) -> None:
    """Plot effective rank and norm of every update by kind and layer."""
    kinds = list(analysis.kinds)
    layers = layer_order(analysis)
    figure = new_figure(1.7 + 2 * max(1.1, 0.34 * len(kinds)))
    top, bottom = figure.subplots(2, 1)
    panels: tuple[tuple[Any, str, Callable[[UpdateSvd], float]], ...] = (
        (top, "effective rank", lambda update: update.effective_rank),
        (bottom, "norm ‖ΔW‖ (Frobenius)", lambda update: update.norm),
    )
    for axes, name, measure in panels:
        cells = kind_by_layer(analysis, {u.path: measure(u) for u in analysis.updates})
        image = draw_cells(axes, cells, kinds, layers, cmap="viridis")
        figure.colorbar(image, ax=axes, label=name)
    trained = f"trained rank r = {_span([update.r for update in analysis.updates])}"
    top.set_title(f"Effective rank in {analysis.name} ({trained})")
    besides = [f"{v.name}s ({v.method})" for v in variants_of(analysis.adapter.config) if v.effect]
    without = f" without {' and '.join(besides)}" if besides else ""
    bottom.set_title(f"Norm of ΔW in {analysis.name}{without}")
    save_png(figure, path)


def layer_order(analysis: AdapterAnalysis) -> list[int | None]:
    """Return the layers in ascending order; None, for modules outside of layers, is last."""
    layers = {place.layer for place in analysis.places.values()}
    numbers: list[int | None] = [*sorted(layer for layer in layers if layer is not None)]
    return numbers + [None] * (None in layers)


def kind_by_layer(analysis: AdapterAnalysis, values: dict[str, float]) -> torch.Tensor:
    """Return values by path as a tensor (kinds, layers), NaN for missing values."""
    kinds, layers = list(analysis.kinds), layer_order(analysis)
    cells = torch.full((len(kinds), len(layers)), float("nan"), dtype=torch.float64)
    for path, value in values.items():
        place = analysis.places[path]
        cells[kinds.index(place.kind), layers.index(place.layer)] = value
    return cells


def draw_cells(
    axes: Any,
    cells: torch.Tensor,
    kinds: Sequence[str],
    layers: Sequence[int | None],
    numbered_layers: int = _NUMBERED_LAYERS,
    **look: Any,
) -> Any:
    """Draw a heat map of kinds by layers; return the image.

    Args:
        axes: Axes to draw on.
        cells: Values, (kinds, layers); NaN is drawn gray.
        kinds: Names of the rows.
        layers: Layers of the columns.
        numbered_layers: Largest number of layers with numbers in the cells.
        look: Options of `imshow`.
    """
    image = axes.imshow(cells.tolist(), aspect="auto", interpolation="nearest", **look)
    axes.set_facecolor(EMPTY)
    axes.set_yticks(range(len(kinds)), kinds, fontsize=9 if len(kinds) <= 12 else 6)
    step = 1 if len(layers) <= 16 else 4
    labelled = [n for n, layer in enumerate(layers) if layer is None or n % step == 0]
    names = [_OUTSIDE if layers[n] is None else str(layers[n]) for n in labelled]
    axes.set_xticks(labelled, names)
    axes.set_xlabel("layer")
    if len(layers) <= numbered_layers and len(kinds) <= _NUMBERED_KINDS:
        for row, line in enumerate(cells.tolist()):
            for column, value in enumerate(line):
                if value == value:  # not NaN
                    red, green, blue, _ = image.cmap(image.norm(value))
                    is_bright = 0.3 * red + 0.59 * green + 0.11 * blue > 0.5
                    colour = "black" if is_bright else "white"
                    place = {"ha": "center", "va": "center", "fontsize": 9}
                    axes.text(column, row, f"{value:.3g}", color=colour, **place)
    return image


def _line(axes: Any, values: torch.Tensor, **look: Any) -> None:
    axes.plot(range(1, len(values) + 1), values.tolist(), **look)


def _median(values: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the median of each singular value over the modules that have it."""
    longest = max(len(curve) for curve in values)
    return torch.stack(
        [
            torch.stack([curve[i] for curve in values if len(curve) > i]).median()
            for i in range(longest)
        ]
    )


def _note(axes: Any, text: str, rank: int, share: float, number: int) -> None:
    """Annotate the curve from below, each note at a different height."""
    width = axes.get_xlim()[1]
    on_right = rank > 0.6 * width
    axes.annotate(
        text,
        (rank, share),
        xytext=(rank + (-0.02 if on_right else 0.02) * width, 0.38 + 0.12 * number),
        ha="right" if on_right else "left",
        arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 1, "relpos": (on_right, 0.5)},
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.9},
    )


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"

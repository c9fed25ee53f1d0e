"""Heat maps of φ between two adapters, between the layers of one, and of random directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lorakit.analysis.adapter_analysis import AdapterAnalysis
from lorakit.analysis.adapter_comparison import AdapterComparison, ModuleSimilarity
from lorakit.analysis.layer_similarity import LayerSimilarity
from lorakit.analysis.module_places import Place
from lorakit.analysis.plots.figures import new_figure
from lorakit.analysis.plots.png import save_png
from lorakit.analysis.plots.spectra import EMPTY, draw_cells, kind_by_layer, layer_order

_ROWS = 3
_MAP = "viridis"
_NUMBERED_LAYERS = 6
"""Largest number of layers with numbers in a heat map of half the width."""
_LABEL = "φ (0: orthogonal, 1: contained)"


def plot_similarity(comparison: AdapterComparison, path: Path) -> None:
    """Plot φ(i, j) between two adapters for the kinds that changed most, with random controls.

    Args:
        comparison: Comparison of two adapters.
        path: File to write.
    """
    modules = choose_modules(comparison)
    figure = new_figure(1.1 + 2.35 * len(modules))
    grid = figure.subplots(len(modules), 4, squeeze=False)
    image = None
    for row, module in zip(grid, modules, strict=True):
        panels = (
            ("input side", module.inputs),
            (f"random, n = {module.in_features}", module.random_inputs),
            ("output side", module.outputs),
            (f"random, n = {module.out_features}", module.random_outputs),
        )
        for axes, (name, phi) in zip(row, panels, strict=True):
            image = axes.imshow(
                phi.tolist(),
                cmap=_MAP,
                vmin=0,
                vmax=1,
                aspect="auto",
                interpolation="nearest",
                extent=(0.5, phi.shape[1] + 0.5, phi.shape[0] + 0.5, 0.5),
            )
            axes.set_title(name, fontsize=10)
            _whole_ticks(axes, *phi.shape)
        row[0].set_ylabel(f"{_short(module.path)}\ni in {comparison.first.name}", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel(f"j in {comparison.second.name}", fontsize=9)
    figure.suptitle(
        f"Subspace similarity φ(i, j) of the first i directions of {comparison.first.name}\n"
        f"and the first j of {comparison.second.name}"
    )
    figure.colorbar(image, ax=grid, label=_LABEL, aspect=30)  # type: ignore[arg-type]  # a list of axes, too
    save_png(figure, path)


def plot_similarity_by_layer(comparison: AdapterComparison, path: Path) -> None:
    """Plot the share of the first's top direction inside the second, by kind and layer.

    Args:
        comparison: Comparison of two adapters.
        path: File to write.
    """
    analysis = comparison.first
    kinds, layers = list(analysis.kinds), layer_order(analysis)
    figure = new_figure(1.7 + 2 * max(1.0, 0.32 * len(kinds)))
    modules = comparison.modules
    panels = (
        ("input side", [module.inputs for module in modules]),
        ("output side", [module.outputs for module in modules]),
        ("random, input side: r / n", [module.expected_inputs for module in modules]),
        ("random, output side: r / n", [module.expected_outputs for module in modules]),
    )
    grid = figure.subplots(2, 2, sharex=True, sharey=True)
    image = None
    for axes, (name, matrices) in zip(grid.flat, panels, strict=True):
        values = {
            module.path: phi[0, -1].item() for module, phi in zip(modules, matrices, strict=True)
        }
        cells = kind_by_layer(analysis, values)
        look = {"cmap": _MAP, "vmin": 0, "vmax": 1}
        image = draw_cells(axes, cells, kinds, layers, _NUMBERED_LAYERS, **look)
        axes.set_title(name, fontsize=10)
    for axes in grid[0]:
        axes.set_xlabel("")
    figure.suptitle(
        f"Share of the top direction of {analysis.name} inside all of {comparison.second.name}"
    )
    figure.colorbar(image, ax=grid, label="φ(1, r)", aspect=30)  # type: ignore[arg-type]  # a list of axes, too
    save_png(figure, path)


def plot_layer_similarity(analysis: AdapterAnalysis, found: LayerSimilarity, path: Path) -> None:
    """Plot φ between all modules of one input width, and between random directions.

    The colours end at the largest φ of two different modules; that of a module with itself is
    always 1, and is drawn gray.

    Args:
        analysis: Analysis of the adapter.
        found: φ of one width.
        path: File to write.
    """
    from matplotlib.colors import PowerNorm

    order = sorted(
        range(len(found.paths)),
        key=lambda index: _place_key(analysis, analysis.places[found.paths[index]]),
    )
    places = [analysis.places[found.paths[index]] for index in order]
    figure = new_figure(4.5)
    grid = figure.subplots(1, 2)
    image = None
    panels = (("measured", found.phi), ("random control", found.random))
    for axes, (name, phi) in zip(grid, panels, strict=True):
        image = axes.imshow(
            _reorder(phi, order),
            cmap=_MAP,
            norm=PowerNorm(0.5, vmin=0, vmax=found.largest or 1),
            interpolation="nearest",
        )
        axes.set_facecolor(EMPTY)
        axes.set_title(name, fontsize=10)
        _block_ticks(axes, places)
    grid[1].set_yticks([])
    top = max(found.directions)
    figure.suptitle(
        f"Subspace similarity φ between modules of {analysis.name} that read "
        f"{found.in_features} features\n(top {top} input directions; within a module layers run "
        "from first to last; gray: itself)"
    )
    figure.colorbar(image, ax=grid, label=_LABEL, shrink=0.75)  # type: ignore[arg-type]  # a list of axes, too
    save_png(figure, path)


def choose_modules(comparison: AdapterComparison) -> list[ModuleSimilarity]:
    """Return the modules to show: a middle layer of each of the three kinds that changed most.

    The change of a kind is the largest ‖ΔW‖_F of the first adapter among its modules.
    """
    norms = {update.path: update.norm for update in comparison.first.updates}
    places, kinds = comparison.first.places, comparison.first.by_kind(comparison.modules)
    most = sorted(kinds.values(), key=lambda group: -max(norms[module.path] for module in group))
    middle = [sorted(group, key=lambda m: places[m.path].layer or 0) for group in most[:_ROWS]]
    return [group[len(group) // 2] for group in middle]


def _short(path: str, longest: int = 26) -> str:
    """Return the end of a path that fits beside a panel."""
    parts = path.split(".")
    while len(".".join(parts)) > longest and len(parts) > 1:
        parts.pop(0)
    return ".".join(parts)


def _whole_ticks(axes: Any, rows: int, columns: int) -> None:
    from matplotlib.ticker import FixedLocator

    axes.xaxis.set_major_locator(FixedLocator(_marks(columns)))
    axes.yaxis.set_major_locator(FixedLocator(_marks(rows)))


def _marks(count: int) -> list[int]:
    """Return the first and last index and a few round ones in between."""
    step = next((step for step in (1, 2, 4, 8, 16, 32) if count / step <= 5), 64)
    between = [number for number in range(step, count, step) if count - number >= step / 2]
    return sorted({1, *(number for number in between if number > step / 2), count})


def _place_key(analysis: AdapterAnalysis, place: Place) -> tuple[int, int]:
    layer = -1 if place.layer is None else place.layer
    return list(analysis.kinds).index(place.kind), layer


def _reorder(matrix: Tensor, order: Sequence[int]) -> list[list[float]]:
    """Return the matrix with reordered rows and columns, and NaN on the diagonal."""
    return matrix[list(order)][:, list(order)].fill_diagonal_(math.nan).tolist()


def _block_ticks(axes: Any, places: Sequence[Place]) -> None:
    """Label each block of one kind at its middle, and draw lines between blocks."""
    starts = [n for n, p in enumerate(places) if n == 0 or places[n - 1].kind != p.kind]
    ends = [*starts[1:], len(places)]
    middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
    names = [places[start].kind for start in starts]
    size = 9 if len(names) <= 10 else 6
    axes.set_xticks(middles, names, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(middles, names, fontsize=size)
    axes.tick_params(length=0)
    for start in starts[1:]:
        axes.axhline(start - 0.5, color="white", linewidth=0.6)
        axes.axvline(start - 0.5, color="white", linewidth=0.6)

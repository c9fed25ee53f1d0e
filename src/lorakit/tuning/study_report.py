"""The report of a study: a table of means, and the recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.files.atomic import write_text

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe
    from lorakit.recipes.search_sections import StudyConfig
    from lorakit.tuning.cells import Cell


def write_study(
    path: Path,
    recipe: Recipe,
    settings: StudyConfig,
    cells: Sequence[Cell],
    best: Cell,
    recommended: Cell,
    metric: str,
    warning: str | None = None,
) -> None:
    """Write the report, with the plot `study.png` in the same directory.

    Args:
        path: Markdown file to write.
        recipe: Studied recipe.
        settings: Settings of the study.
        cells: All cells, with results.
        best: Cell with the best mean.
        recommended: Smallest sufficient cell.
        metric: Name of the metric in words.
        warning: Warning about the recommendation.
    """
    seeds = len(settings.seeds)
    spread = f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else ", one seed"
    fraction = settings.sample_fraction
    share = "" if fraction == 1 else f" {100 * fraction:g}% of the training examples;"
    lines = [
        f"# Rank and modules: {Path(recipe.model).name}",
        "",
        f"{metric.capitalize()} of the best epoch{spread};{share} the scaling lora_alpha / r is "
        "the same at every rank.",
        "",
        *table_lines(cells, settings),
        "",
        "![The study](study.png)",
        "",
        *([f"**{warning}**", ""] if warning else []),
        recommendation(cells, best, recommended, settings, metric),
        "",
    ]
    write_text(path, "\n".join(lines))


def table_lines(cells: Sequence[Cell], settings: StudyConfig) -> list[str]:
    """Return a Markdown table: a row for each set of modules, a column for each rank."""
    is_equal = settings.budget == "equal"
    columns = list(dict.fromkeys(cell.column for cell in cells))
    sets = list(dict.fromkeys(cell.target_set.label for cell in cells))
    widest = max(cells, key=lambda cell: cell.target_set.parameters_per_rank)
    per_rank = widest.target_set.parameters_per_rank
    names = [
        f"{column * per_rank:,} parameters" if is_equal else f"r={column}" for column in columns
    ]
    lines = ["| modules | " + " | ".join(names) + " |", "|---|" + "--:|" * len(columns)]
    for label in sets:
        cell_of_column = {cell.column: cell for cell in cells if cell.target_set.label == label}
        texts = [cell_text(cell_of_column[column], with_rank=is_equal) for column in columns]
        lines.append(f"| {label} | " + " | ".join(texts) + " |")
    return lines


def cell_text(cell: Cell, *, with_rank: bool) -> str:
    """Return the mean and deviation of a cell, with its rank if columns are budgets."""
    if not cell.values:
        return "failed"
    text = f"{cell.mean:.4f}"
    if len(cell.values) > 1:
        text += f" ± {cell.deviation:.4f}"
    if cell.failed:
        text += f" ({cell.failed} failed)"
    return f"{text} (r={cell.rank})" if with_rank else text


def recommendation(
    cells: Sequence[Cell], best: Cell, recommended: Cell, settings: StudyConfig, metric: str
) -> str:
    """Return a sentence on which cell suffices, and by which rule."""
    name = f"r={recommended.rank} on {recommended.target_set.label}"
    size = f"{recommended.parameters:,} parameters in the factors"
    if len(settings.seeds) == 1:
        return (
            f"**Best: {name}** ({size}), {metric} {recommended.mean:.4f}. With one seed, "
            "chance cannot be ruled out; add `study.seeds`."
        )
    if len(best.values) == 1:
        return (
            f"**Best: {name}** ({size}), {metric} {recommended.mean:.4f}. Only one of its "
            f"{len(settings.seeds)} runs has not failed, so chance cannot be ruled out; --resume "
            "starts the failed ones again."
        )
    if recommended is best:
        return (
            f"**Smallest sufficient: {name}** ({size}). It has the best mean itself, "
            f"{best.mean:.4f}, and nothing smaller is within one standard error "
            f"({best.standard_error:.4f}) of it."
        )
    smallness = "parameters" if settings.layers is None else "layers, and then parameters"
    cost = abs(best.mean - recommended.mean)
    return (
        f"**Smallest sufficient: {name}** ({size}). Its mean, {recommended.mean:.4f}, is within "
        f"one standard error ({best.standard_error:.4f}) of the best one, {best.mean:.4f} by "
        f"r={best.rank} on {best.target_set.label} with {best.parameters:,} parameters; of all "
        f"such cells, it has the fewest {smallness}. It costs {cost:.4f} of {metric}."
    )

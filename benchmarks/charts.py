"""The charts of docs/performance.md. Each draws what the table beside it says."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from benchmarks import bracketing, rows, switching
from benchmarks.results import Row, matching, newest
from benchmarks.step import FORWARD_BACKWARD, SAVED
from benchmarks.tables import VARIANTS, bracket_points, columns, number_in, variants_of
from benchmarks.variants import (
    COMPILED,
    FULL,
    LIMIT,
    LORAKIT,
    LORAKIT_COMPILED,
    LORAKIT_MLP,
    LORALIB,
    PEFT,
    PEFT_COMPILED,
    PEFT_FLOAT32,
)

# Colours of Okabe and Ito, which most colour-blind people can distinguish.
COLOURS = {
    LIMIT: "#999999",
    rows.BASE: "#999999",
    FULL: "#E69F00",
    LORAKIT: "#56B4E9",
    LORAKIT_MLP: "#0072B2",
    LORAKIT_COMPILED: "#56B4E9",
    PEFT: "#D55E00",
    PEFT_FLOAT32: "#CC79A7",
    PEFT_COMPILED: "#D55E00",
    LORALIB: "#009E73",
}
MARKERS = {LIMIT: "v", FULL: "s", LORAKIT: "o", LORAKIT_MLP: "o", PEFT: "D", LORALIB: "^"}
_OTHER_COLOUR = "#000000"
_WIDTH_INCHES = 9.0
_PANEL_INCHES = 3.0
_MOST_GROUPS = 4
_MOST_IN_LEGEND_ROW = 7
_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "svg.fonttype": "path",
    # Fixed, so that a chart of the same rows is the same file.
    "svg.hashsalt": "lorakit",
}

Bar = tuple[float, float, float]
"""20th percentile, median, 80th percentile"""


@contextmanager
def style() -> Iterator[None]:
    """Set the look of charts; drawing and saving happen within."""
    with rc_context(_STYLE):
        yield


def save(figure: Figure, path: Path, description: str) -> None:
    """Write a chart; an SVG file carries a description of what it shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None, "Description": description} if path.suffix == ".svg" else None
    figure.savefig(path, facecolor="white", metadata=metadata)


def step_chart(device_rows: Sequence[Row]) -> Figure:
    """Draw the time of a step as a multiple of the frozen limit's."""

    def ratio(group: Sequence[Row], variant: str) -> Bar | None:
        row = newest(group, measure=FORWARD_BACKWARD, variant=variant, ratio_to=LIMIT)
        if row is None or row.ratio is None:
            return None
        return row.ratio_p20 or row.ratio, row.ratio, row.ratio_p80 or row.ratio

    figure, panels = _bars(device_rows, ratio, "{:.2f}", "forward + backward\n/ frozen limit")
    for axes in panels:
        axes.axhline(1, color=COLOURS[LIMIT], linestyle="--", linewidth=1, label="frozen limit")
    _finish(figure, panels, "Time of forward and backward, as a multiple of the frozen limit")
    return figure


def bytes_chart(device_rows: Sequence[Row]) -> Figure:
    """Draw the bytes saved for backward."""

    def mebibytes(group: Sequence[Row], variant: str) -> Bar | None:
        row = newest(group, measure=SAVED, variant=variant)
        return None if row is None else (row.p50 / 2**20,) * 3

    figure, panels = _bars(device_rows, mebibytes, "{:.0f}", "saved for backward (MiB)")
    _finish(figure, panels, "Memory kept between forward and backward")
    return figure


def _bars(
    device_rows: Sequence[Row],
    value: Callable[[Sequence[Row], str], Bar | None],
    digits: str,
    label: str,
) -> tuple[Figure, list[Axes]]:
    """Draw a group of bars for each model and column, a few groups to a panel."""
    groups = []
    for text, rows_of_column in columns(device_rows):
        found = ((name, value(rows_of_column, name)) for name in variants_of(rows_of_column))
        groups.append((text, {name: bar for name, bar in found if bar}))
    panel_count = math.ceil(len(groups) / _MOST_GROUPS)
    in_panel = math.ceil(len(groups) / panel_count)
    width = 0.86 / max(len(bars) for _, bars in groups)
    figure = _figure(panel_count)
    panels = [figure.add_subplot(panel_count, 1, number + 1) for number in range(panel_count)]
    for number, axes in enumerate(panels):
        in_this_panel = groups[number * in_panel : (number + 1) * in_panel]
        for place, (_, bars) in enumerate(in_this_panel):
            for index, (name, bar) in enumerate(bars.items()):
                offset = (index - (len(bars) - 1) / 2) * width
                _draw_bar(axes, place + offset, bar, name, width, digits)
        axes.set_xticks(
            range(len(in_this_panel)), [_column_label(text) for text, _ in in_this_panel]
        )
        axes.set_xlim(-0.5, in_panel - 0.5)
        axes.tick_params(axis="x", length=0)
        axes.margins(y=0.2)
        axes.set_ylabel(label)
        axes.grid(axis="y", alpha=0.3)
    return figure, panels


def _draw_bar(axes: Axes, place: float, bar: Bar, name: str, width: float, digits: str) -> None:
    low, middle, high = bar
    axes.bar(
        place,
        middle,
        width * 0.92,
        color=COLOURS.get(name, _OTHER_COLOUR),
        hatch="//" if name in COMPILED else None,
        edgecolor="white",
        label=name,
    )
    if high > low:
        axes.plot([place, place], [low, high], color="black", linewidth=1)
    axes.annotate(
        digits.format(middle),
        (place, max(middle, high)),
        (0, 2),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=7,
        rotation=90,
    )


def _column_label(text: str) -> str:
    shape, batch, dtype, dropout, rank = text.split(", ")
    return f"{shape}, {batch}\n{dtype}, {dropout}, {rank}"


def decode_chart(device_rows: Sequence[Row]) -> Figure:
    """Draw decoded tokens per second as a share of the base model's."""
    figure = _figure(1)
    axes = figure.add_subplot()
    settings = sorted({row.setting for row in device_rows}, key=_numbers_in)
    for name in (LORAKIT, PEFT):
        found = matching(device_rows, variant=name, ratio_to=rows.BASE)
        found.sort(key=lambda row: settings.index(row.setting))
        points = [(settings.index(row.setting), row) for row in found]
        _draw_line(axes, [(x, _ratio_bar(row)) for x, row in points], name)
    axes.axhline(1, color=COLOURS[rows.BASE], linestyle="--", linewidth=1, label="base model")
    axes.set_xticks(range(len(settings)), [setting.replace(", ", "\n") for setting in settings])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("tokens per second / base model")
    axes.set_xlabel("rows of the batch, and distinct adapters among them")
    _finish(figure, [axes], "Decoding a batch with an adapter for each row")
    return figure


def growth_chart(device_rows: Sequence[Row]) -> Figure:
    """Draw the time of a step over tokens, rank and depth."""
    figure = _figure(1)
    titles = {"tokens": "tokens in a batch", "rank": "rank r", "depth": "blocks of the model"}
    panels = []
    for number, (axis, label) in enumerate(titles.items()):
        axes = figure.add_subplot(1, len(titles), number + 1)
        along = [row for row in device_rows if row.setting.startswith(f"{axis} ")]
        along = matching(along, measure=FORWARD_BACKWARD)
        for name in variants_of(along):
            newest_by_value = {number_in(r.setting): r for r in matching(along, variant=name)}
            points = [(x, _time_bar(row)) for x, row in sorted(newest_by_value.items())]
            _draw_line(axes, points, name)
        values = sorted({number_in(row.setting) for row in along})
        axes.set_xlabel(label)
        if axis != "depth":
            axes.set_xscale("log", base=2)
        if axis == "tokens":
            _logarithmic_times(axes)
        else:
            axes.set_ylim(bottom=0)
        axes.set_xticks(values, [str(value) for value in values])
        axes.minorticks_off()
        panels.append(axes)
    panels[0].set_ylabel("forward + backward (ms)")
    _finish(figure, panels, "How a step grows")
    return figure


def loading_chart(device_rows: Sequence[Row]) -> Figure:
    """Draw the time to load the k-th adapter."""
    figure = _figure(1)
    axes = figure.add_subplot()
    loads = matching(device_rows, measure=switching.LOAD)
    for name in (LORAKIT, PEFT):
        by_k = {number_in(row.setting): row for row in matching(loads, variant=name)}
        _draw_line(axes, [(k, _time_bar(row)) for k, row in sorted(by_k.items())], name)
    values = sorted({number_in(row.setting) for row in loads})
    axes.set_xscale("log", base=2)
    _logarithmic_times(axes)
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.set_xlabel("k")
    axes.set_ylabel("time to load it (ms)")
    _finish(figure, [axes], "Loading the k-th adapter into one model")
    return figure


def bracketing_chart(device_rows: Sequence[Row]) -> Figure:
    """Draw the factored way's time as a multiple of the formed way's, over tokens."""
    layers = list(dict.fromkeys(row.shape for row in device_rows))
    figure = _figure(1)
    panels: list[Axes] = []
    laps = {bracketing.FORWARD: ("-", "o"), bracketing.FORWARD_BACKWARD: (":", "s")}
    for number, layer in enumerate(layers):
        shared = panels[0] if panels else None
        axes = figure.add_subplot(1, len(layers), number + 1, sharey=shared)
        points: list[tuple[int, Row]] = []
        for lap, (line, marker) in laps.items():
            points = bracket_points(device_rows, layer, lap)
            bars = [(count, _ratio_bar(row)) for count, row in points]
            _draw_line(axes, bars, lap, color=COLOURS[LORAKIT], line=line, marker=marker)
        sizes = layer.split(" to ")
        paper = bracketing.crossover_tokens(int(sizes[0]), int(sizes[1]))
        axes.axhline(1, color=COLOURS[LIMIT], linestyle="--", linewidth=1, label="equal")
        axes.axvline(
            paper, color=_OTHER_COLOUR, linestyle="-.", linewidth=1, label="equal on paper"
        )
        axes.set_xscale("log", base=2)
        tokens = [count for count, _ in points]
        axes.set_xticks(tokens, [str(count) for count in tokens], rotation=45)
        axes.minorticks_off()
        axes.set_title(layer)
        axes.set_xlabel("tokens")
        panels.append(axes)
    panels[0].set_ylabel("time of factored / formed")
    _finish(figure, panels, "x W0ᵀ + s (x Aᵀ) Bᵀ against x (W0 + s B A)ᵀ")
    return figure


def _draw_line(
    axes: Axes,
    points: Sequence[tuple[float, Bar]],
    name: str,
    *,
    color: str | None = None,
    line: str = "-",
    marker: str | None = None,
) -> None:
    if not points:
        return
    middles = [bar[1] for _, bar in points]
    below = [max(0.0, bar[1] - bar[0]) for _, bar in points]
    above = [max(0.0, bar[2] - bar[1]) for _, bar in points]
    axes.errorbar(
        [x for x, _ in points],
        middles,
        yerr=[below, above],
        color=color or COLOURS.get(name, _OTHER_COLOUR),
        linestyle=line,
        marker=marker or MARKERS.get(name, "o"),
        markersize=4,
        linewidth=1.5,
        elinewidth=1,
        label=name,
    )


def _ratio_bar(row: Row) -> Bar:
    middle = row.ratio or math.nan
    return row.ratio_p20 or middle, middle, row.ratio_p80 or middle


def _time_bar(row: Row) -> Bar:
    return row.p20 * 1e3, row.p50 * 1e3, row.p80 * 1e3


def _numbers_in(setting: str) -> tuple[int, ...]:
    return tuple(number_in(part) for part in setting.split(", "))


def _logarithmic_times(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))


def _figure(panel_count: int) -> Figure:
    height = _PANEL_INCHES * panel_count + 0.5
    return Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")


def _finish(figure: Figure, panels: Sequence[Axes], title: str) -> None:
    for axes in panels:
        axes.grid(axis="y", alpha=0.3)
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    order = [*(name for name in found if name not in VARIANTS), *VARIANTS]
    labelled = {name: found[name] for name in order if name in found}
    figure.suptitle(title)
    figure.legend(
        labelled.values(),
        labelled.keys(),
        loc="outside lower center",
        ncols=math.ceil(len(labelled) / math.ceil(len(labelled) / _MOST_IN_LEGEND_ROW)),
        frameon=False,
    )

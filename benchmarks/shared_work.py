"""Write docs/shared-work.md and its pictures: many runs in one pass, and the frozen part once.

All numbers are read from rows. A picture shows the machine that has measured most lately.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import charts, searches, together
from benchmarks.frozen_epochs import ALL, EPOCH, SHARES, computed, kept
from benchmarks.options import quantity_text
from benchmarks.results import RESULTS, ROOT, Row, matching, newest, read_rows
from benchmarks.step import FORWARD_BACKWARD
from benchmarks.tables import table

PAGE = Path("shared-work.md")
IMAGES = Path("images") / "shared-work"
BENCHMARKS = ("together", "frozen_part", "searches")

_COLOURS = ("#999999", "#56B4E9", "#E69F00", "#009E73", "#0072B2")

_HEAD = """# What runs share, measured

Runs on one base can share two things: [one pass for many runs](how-to/many-runs.md), and [the output of the layers below the first adapted one](how-to/upper-layers.md), which is computed once for each example. This page shows what each saves, and what both save together. `python -m benchmarks.page` writes it from rows of measurements.
"""  # noqa: E501

_TAIL = """## When which of them helps

- One pass for many runs reads the weights once for all: it helps most with small batches, and with bases in 4 bits, whose weights are dequantized once for all runs. A large batch on a dense base is computed by itself and saves nothing. The trials above have batches of 16 texts: they gain nothing from one pass, and those of one process wait for each other. `together: auto` measures that, and trains such trials in separate processes.
- Runs in one pass have the base, Python and the libraries in memory once, whatever the batch size.
- The frozen part saves the forward pass of the layers below, from the second epoch on and in every later run on the same data. The forward and backward pass of the layers above and of the output layer remains, so with half of the layers adapted, less than half of the time is saved.
- Runs that train together read and fill the same cache. While they see the same examples in the same order, as trials of a search do, the layers below are computed once for all of them in the first epoch too. Runs whose first adapted layers differ are computed one depth after the other.
"""  # noqa: E501


@dataclass(frozen=True)
class Part:
    """A picture with the table of its numbers.

    Attributes:
        title: Heading of the part.
        about: What is measured.
        benchmark: The benchmark of its rows.
        bars: Returns panels of bars from the rows of one machine.
        image: Name of the picture.
    """

    title: str
    about: str
    benchmark: str
    bars: Callable[[Sequence[Row]], "list[Panel]"]
    image: str


@dataclass(frozen=True)
class Panel:
    """Bars beside each other: a value for each name, in a unit, for one thing measured.

    Attributes:
        what: What is measured.
        unit: Of the values, "s" or "B".
        values: Median by name.
        spread: 20th and 80th percentile by name, where there are several rounds.
        ratios: What share of which other name it is by name, where they were measured in turn.
    """

    what: str
    unit: str
    values: dict[str, float]
    spread: dict[str, tuple[float, float]]
    ratios: dict[str, str]


def _panel(what: str, rows: Sequence[Row], names: Iterable[str]) -> list[Panel]:
    """Return a panel of the rows of some variants, or none if fewer than two have any."""
    found = {name: row for name in names if (row := newest(rows, variant=name)) is not None}
    if len(found) < 2:
        return []
    first = next(iter(found))
    ratios: dict[str, str] = {}
    for name in found:
        compared = [row for row in matching(rows, variant=name) if row.ratio is not None]
        row = newest(compared, ratio_to=first) or newest(compared)
        if row is not None and name != first:
            ratios[name] = f"{row.ratio:.2f} of {row.ratio_to}"
    return [
        Panel(
            what,
            found[first].unit,
            {name: row.p50 for name, row in found.items()},
            {name: (row.p20, row.p80) for name, row in found.items() if row.rounds > 1},
            ratios,
        )
    ]


def _together(rows: Sequence[Row]) -> list[Panel]:
    panels: list[Panel] = []
    for column in together.COLUMNS:
        setting = together.setting_of(*column)
        of = matching(rows, setting=setting, measure=FORWARD_BACKWARD)
        panels += _panel(setting, of, (together.ALONE, together.TOGETHER))
    of = matching(rows, setting=together.MEMORY_SETTING, measure=together.PEAK)
    what = f"{together.PEAK}, {together.MEMORY_SETTING}"
    return panels + _panel(what, of, (together.ALONE, together.TOGETHER))


def _frozen(rows: Sequence[Row]) -> list[Panel]:
    names = [ALL, *(name(share) for share in SHARES for name in (computed, kept))]
    panels: list[Panel] = []
    for measure, what in ((FORWARD_BACKWARD, "a step"), (EPOCH, "a later epoch")):
        panels += _panel(what, matching(rows, measure=measure), names)
    return panels


def _searches(rows: Sequence[Row]) -> list[Panel]:
    panels: list[Panel] = []
    for setting in dict.fromkeys(row.setting for row in rows):
        for measure in (searches.SECONDS, searches.PEAK):
            of = matching(rows, setting=setting, measure=measure)
            panels += _panel(f"{measure}, {setting}", of, searches.WAYS)
    return panels


PARTS = (
    Part(
        "Many runs, one pass",
        "Forward and backward of several runs on one base, one after another and together; "
        "and the peak memory of whole runs, each in a separate process and all in one.",
        "together",
        _together,
        "together.png",
    ),
    Part(
        "The frozen part once",
        "A step that adapts all layers, the upper half and the upper quarter, with the layers "
        "below computed, or kept on disk as in every epoch but the first.",
        "frozen_part",
        _frozen,
        "frozen-part.png",
    ),
    Part(
        "A search and a study",
        "A search of eight trials that adapts the upper half, and a study with three depths, on "
        "the quickstart's task: each trial in a separate process, together, with the frozen part "
        "kept, and both. Ray, Python and the libraries are counted. In separate processes two "
        "trials train at once; together four, two in each of two processes.",
        "searches",
        _searches,
        "searches.png",
    ),
)


def draw(title: str, panels: Sequence[Panel]) -> Figure:
    """Draw horizontal bars, a panel below the other, each from zero."""
    heights = [0.75 + 0.32 * len(panel.values) for panel in panels]
    figure = Figure(figsize=(9.0, sum(heights) + 0.6), layout="constrained")
    grid = figure.add_gridspec(len(panels), 1, height_ratios=heights)
    for number, panel in enumerate(panels):
        _bars(figure.add_subplot(grid[number, 0]), panel)
    figure.suptitle(title)
    return figure


def _bars(axes: Axes, panel: Panel) -> None:
    names = [*panel.values]
    largest = max(panel.values.values())
    for place, name in enumerate(names):
        value = panel.values[name]
        axes.barh(place, value, 0.7, color=_COLOURS[place % len(_COLOURS)])
        low, high = panel.spread.get(name, (value, value))
        axes.plot([low, high], [place, place], color="black", linewidth=1)
        text = f"{quantity_text(value, panel.unit)}   {panel.ratios.get(name, '')}"
        axes.annotate(
            text, (max(value, high), place), (4, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.6 * largest)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(panel.what, loc="left", fontsize=9)


def _tables(panels: Sequence[Panel]) -> str:
    lines = [
        (panel.what, name, quantity_text(value, panel.unit), panel.ratios.get(name, ""))
        for panel in panels
        for name, value in panel.values.items()
    ]
    return table(("measured", "way", "median", "ratio"), lines)


def parts(rows: Sequence[Row]) -> list[tuple[Part, str, list[Panel]]]:
    """Return the parts that have rows, each with its machine and panels."""
    found: list[tuple[Part, str, list[Panel]]] = []
    for part in PARTS:
        of = matching(rows, benchmark=part.benchmark)
        if not of:
            continue
        device = max(of, key=lambda row: row.origin.date).origin.device
        panels = part.bars([row for row in of if row.origin.device == device])
        if panels:
            found.append((part, device, panels))
    return found


def page_text(rows: Sequence[Row]) -> str:
    """Return the page."""
    text = [_HEAD.rstrip()]
    for part, device, panels in parts(rows):
        of = matching(rows, benchmark=part.benchmark)
        dates = sorted({row.origin.date for row in of if row.origin.device == device})
        text += [
            f"## {part.title}",
            part.about,
            f"![{part.title}]({(IMAGES / part.image).as_posix()})",
            f"{device}; {dates[-1]}; `python -m benchmarks.{part.benchmark}`.",
            _tables(panels),
        ]
    return "\n\n".join([*text, _TAIL.rstrip()]) + "\n"


def write(results: Path = RESULTS, docs: Path = ROOT / "docs") -> list[Path]:
    """Write the page and its pictures; return their paths."""
    rows = read_rows(BENCHMARKS, results)
    if not parts(rows):
        return []
    page = docs / PAGE
    page.write_text(page_text(rows), encoding="utf-8")
    written = [page]
    with charts.style():
        for part, device, panels in parts(rows):
            path = docs / IMAGES / part.image
            charts.save(draw(f"{part.title}\n{device}", panels), path, part.about)
            written.append(path)
    return written

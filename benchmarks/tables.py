"""The tables of the pages about performance. Every number in a cell is a row's."""

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import pairwise

from benchmarks import bracketing, latency, rows, switching
from benchmarks.goals import GOALS, NOT_MEASURED, SHAPE, Goal, verdict
from benchmarks.models import SHAPES
from benchmarks.options import quantity_text
from benchmarks.results import Row, matching, newest
from benchmarks.step import FORWARD_BACKWARD, PEAK, SAVED, TOTAL, WITH_OPTIMIZER
from benchmarks.variants import COMPILED, EAGER, FULL, LIMIT, LORAKIT, LORALIB, PEFT

VARIANTS = EAGER + COMPILED


def goal_table(device_rows: Sequence[Row], device: str) -> str:
    """Return every goal that was measured with what was reached, and which others were not."""
    verdicts = [verdict(goal, device_rows, device) for goal in GOALS]
    if all(found.row is None for found in verdicts):
        return f"The goals are for {SHAPE}; there are no rows of it from this device."
    lines = []
    missing: Counter[str] = Counter()
    for goal, found in zip(GOALS, verdicts, strict=True):
        if found.row is None or found.reached is None:
            missing[found.text.removeprefix(NOT_MEASURED)] += 1
            continue
        reached = _goal_number(goal, found.reached)
        if found.row.rounds > 1:
            low, high = _range_of(goal, found.row)
            reached += f" ({_goal_number(goal, low)}–{_goal_number(goal, high)})"
        sign = "≥" if goal.at_least else "≤"
        targets = [
            "" if target is None else f"{sign} {_goal_number(goal, target)}"
            for target in (goal.must, goal.aim)
        ]
        lines.append((goal.what, _where_text(goal), reached, *targets, found.text))
    measured = table(("", "measured with", "reached", "goal", "aim", ""), lines)
    if not missing:
        return measured
    others = ", ".join(f"{reason} ({number})" for reason, number in missing.items())
    return f"{measured}\n\nGoals without a number here, by reason: {others}."


def goals_met(device_rows: Sequence[Row], device: str) -> tuple[str, str]:
    """Return how many of the goals measured on a device are met, and which are missed."""
    verdicts = [(goal, verdict(goal, device_rows, device)) for goal in GOALS]
    measured = [(goal, found) for goal, found in verdicts if found.row is not None]
    missed = [(goal, found) for goal, found in measured if not found.is_met]
    named = "; ".join(
        f"{goal.what} ({_where_text(goal)}): {_goal_number(goal, found.reached or 0.0)}"
        for goal, found in missed
    )
    return f"{len(measured) - len(missed)} of {len(measured)}", named


def _goal_number(goal: Goal, value: float) -> str:
    return f"{value:.3f}" if "ratio_to" in goal.where else quantity_text(value, goal.unit)


def _range_of(goal: Goal, row: Row) -> tuple[float, float]:
    if "ratio_to" not in goal.where:
        return row.p20, row.p80
    return row.ratio_p20 or 0.0, row.ratio_p80 or 0.0


def _where_text(goal: Goal) -> str:
    where = goal.where
    parts = [where["shape"], where["setting"], where["dtype"]]
    if where["dropout"]:
        parts.append(f"dropout {where['dropout']:g}")
    return ", ".join([*map(str, parts), f"r={where['r']}"])


def step_table(measured: Sequence[Row]) -> str:
    """Return the time of a step for each model and column, with its ratios."""
    parts = []
    for label, group in columns(measured):
        lines = []
        for variant in variants_of(group):
            step = {"measure": FORWARD_BACKWARD, "variant": variant}
            whole = {"measure": WITH_OPTIMIZER, "variant": variant}
            ratios = [ratio_of(group, ratio_to=to, **step) for to in (LIMIT, FULL, PEFT, LORALIB)]
            optimized = ratio_of(group, ratio_to=FULL, **whole)
            lines.append(
                (variant, median_of(group, **step), *ratios, median_of(group, **whole), optimized)
            )
        header = ("", "step", "/ limit", "/ full", "/ peft", "/ loralib", "with AdamW", "/ full")
        parts += [f"**{label}**", table(header, lines)]
    return "\n\n".join(parts)


def bytes_table(measured: Sequence[Row]) -> str:
    """Return what a step saves for backward and its peaks for each model and column."""
    parts = []
    for label, group in columns(measured):
        lines = []
        for variant in variants_of(group):
            cells = []
            for measure, others in ((SAVED, (LIMIT, PEFT)), (PEAK, (PEFT,)), (TOTAL, (FULL, PEFT))):
                cells.append(median_of(group, measure=measure, variant=variant))
                cells += [
                    ratio_of(group, measure=measure, variant=variant, ratio_to=other)
                    for other in others
                ]
            lines.append((variant, *cells))
        header = ("", SAVED, "/ limit", "/ peft", PEAK, "/ peft", TOTAL, "/ full", "/ peft")
        parts += [f"**{label}**", table(header, lines)]
    return "\n\n".join(parts)


def latency_table(measured: Sequence[Row]) -> str:
    """Return the latency of base, unmerged, merged and PEFT for each batch."""
    names = (latency.BASE, latency.UNMERGED, latency.MERGED, latency.PEFT_UNMERGED)
    return _by_variant(("model", "batch"), measured, names, latency.BASE, ("shape", "setting"))


def decode_table(measured: Sequence[Row]) -> str:
    """Return decoded tokens per second for each number of adapters in the batch."""
    return _by_variant(("batch",), measured, (rows.BASE, LORAKIT, PEFT), rows.BASE, ("setting",))


def growth_table(measured: Sequence[Row]) -> str:
    """Return time and saved bytes along each axis."""
    parts = []
    for axis in ("tokens", "rank", "depth"):
        along = [row for row in measured if row.setting.startswith(f"{axis} ")]
        for measure in (FORWARD_BACKWARD, SAVED):
            found = sorted(matching(along, measure=measure), key=lambda row: number_in(row.setting))
            if found:
                made = _by_variant((measure,), found, variants_of(found), LIMIT, ("setting",))
                parts.append(made)
    return "\n\n".join(parts)


def injection_table(measured: Sequence[Row]) -> str:
    """Return the time to add an adapter, to load the k-th, and to switch."""
    lines = []
    loads = matching(measured, measure=switching.LOAD)
    late = sorted(loads, key=lambda row: number_in(row.setting))
    settings = dict.fromkeys(row.setting for row in late)
    for measure, setting in ((switching.INJECT, ""), *((switching.LOAD, s) for s in settings)):
        here = matching(measured, measure=measure, setting=setting)
        cells = [_time_and_ratio(here, name) for name in (LORAKIT, PEFT)]
        lines.append((f"{measure}, the {_ordinal(setting)}" if setting else measure, *cells))
    switches = matching(measured, measure=switching.SWITCH)
    lines.append(
        (switching.SWITCH, *(_time_and_ratio(switches, name, True) for name in (LORAKIT, PEFT)))
    )
    return table(("", LORAKIT, PEFT), [line for line in lines if any(line[1:])])


def bracketing_table(measured: Sequence[Row]) -> str:
    """Return where the two ways meet, on paper and measured, and the ratios in between."""
    layers = dict.fromkeys(row.shape for row in measured)
    laps = (bracketing.FORWARD, bracketing.FORWARD_BACKWARD)
    lines = []
    for layer in layers:
        sizes = [int(size) for size in re.findall(r"\d+", layer)]
        paper = f"{bracketing.crossover_tokens(*sizes):.0f}"
        meetings = [meeting_text(bracket_points(measured, layer, lap)) for lap in laps]
        lines.append((layer, paper, *meetings))
    parts = [table(("layer", "tokens on paper", *(f"measured, {lap}" for lap in laps)), lines)]
    for lap in laps:
        points = {layer: dict(bracket_points(measured, layer, lap)) for layer in layers}
        tokens = sorted({count for found in points.values() for count in found})
        lines = [
            (layer, *(ratio_text(found.get(count)) for count in tokens))
            for layer, found in points.items()
        ]
        parts.append(table((f"{lap}, factored / formed", *map(str, tokens)), lines))
    return "\n\n".join(parts)


def bracket_points(measured: Sequence[Row], layer: str, lap: str) -> list[tuple[int, Row]]:
    """Return factored against formed by tokens."""
    wanted = {"variant": bracketing.FACTORED, "ratio_to": bracketing.FORMED}
    found = matching(measured, shape=layer, measure=lap, **wanted)
    return sorted(((number_in(row.setting), row) for row in found), key=lambda point: point[0])


def meeting_text(points: Sequence[tuple[int, Row]]) -> str:
    """Say at how many tokens the ratio of the two ways passes 1, on a logarithmic scale.

    Both measured neighbours are named; without a passage, the side on which it must lie.
    """
    found = [(count, row.ratio) for count, row in points if row.ratio]
    if not found:
        return ""
    passages = []
    for (low, before), (high, after) in pairwise(found):
        if (before > 1) != (after > 1):
            share = math.log(before) / (math.log(before) - math.log(after))
            at = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
            passages.append(f"{at:.0f} (between {low} and {high})")
    if passages:
        return ", ".join(passages)
    return f"below {found[0][0]}" if found[0][1] > 1 else f"above {found[-1][0]}"


def dropout_table(measured: Sequence[Row]) -> str:
    """Return a line for each way of doing what is measured at one dropout, by dtype."""
    parts = []
    for (measure, shape, p, r), group in grouped(
        measured, lambda row: (row.measure, row.shape, row.dropout, row.r)
    ):
        dtypes = sorted({row.dtype for row in group}, reverse=True)
        names = dict.fromkeys(row.variant for row in group)
        lines = [
            (name, *(_time_and_ratio(matching(group, dtype=dtype), name) for dtype in dtypes))
            for name in names
        ]
        what = f"{measure}, {shape}, dropout {p:g}, r={r}"
        parts.append(table((what, *dtypes), lines))
    return "\n\n".join(parts)


def busy_table(measured: Sequence[Row]) -> str:
    """Return a line for each variant, and a column for each load of the machine."""
    loads = list(dict.fromkeys(row.setting for row in measured))
    parts = []
    for (shape,), group in grouped(measured, lambda row: (row.shape,)):
        names = dict.fromkeys(row.variant for row in group)
        lines = [
            (name, *(_time_and_ratio(matching(group, setting=load), name) for load in loads))
            for name in names
        ]
        parts.append(table((shape, *loads), lines))
    return "\n\n".join(parts)


def settings_table(measured: Sequence[Row]) -> str:
    """Return a table for each quantity: a line for each variant, a column for each setting."""
    parts = []
    for (measure, shape), group in grouped(measured, lambda row: (row.measure, row.shape)):
        settings = list(dict.fromkeys(row.setting for row in group))
        lines = [
            (name, *(_time_and_ratio(matching(group, setting=each), name) for each in settings))
            for name in dict.fromkeys(row.variant for row in group)
        ]
        parts.append(table((f"{measure}, {shape}", *settings), lines))
    return "\n\n".join(parts)


def _by_variant(
    header: Sequence[str],
    measured: Sequence[Row],
    names: Sequence[str],
    reference: str,
    key: Sequence[str],
) -> str:
    """Return a line for each setting and a column for each variant, with ratios to one of them."""
    lines = []
    for values, group in grouped(measured, lambda row: tuple(getattr(row, name) for name in key)):
        cells = []
        for name in names:
            cell, ratio = (
                median_of(group, variant=name),
                ratio_of(group, variant=name, ratio_to=reference),
            )
            cells.append(f"{cell}, {ratio}" if ratio else cell)
        lines.append((*values, *cells))
    return table((*header, *names), lines)


def _time_and_ratio(measured: Sequence[Row], variant: str, with_setting: bool = False) -> str:
    row = newest([one for one in measured if one.ratio is not None], variant=variant)
    row = row or newest(measured, variant=variant)
    if row is None:
        return ""
    text = quantity_text(row.p50, row.unit)
    if row.rounds > 1:
        text += f" ({quantity_text(row.p20, row.unit)}–{quantity_text(row.p80, row.unit)})"
    if with_setting:
        text += f" among {row.setting}"
    if row.ratio is None:
        return text
    reference = f"its {_ordinal(row.ratio_to)}" if "adapter" in row.ratio_to else row.ratio_to
    return f"{text}, {number(row.ratio)} x {reference}"


def _ordinal(setting: str) -> str:
    """Write "adapter 2" as "2nd"; other texts as they are.

    >>> [_ordinal(f"adapter {k}") for k in (1, 2, 64, 11)]
    ['1st', '2nd', '64th', '11th']
    """
    if not setting.startswith("adapter "):
        return setting
    k = number_in(setting)
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{k}{'th' if k % 100 in (11, 12, 13) else endings.get(k % 10, 'th')}"


def columns(measured: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """Return the rows of each model, batch, dtype, dropout and rank with a label for them."""

    def key(row: Row) -> tuple[str, str, str, float, int]:
        return row.shape, row.setting, row.dtype, row.dropout, row.r

    def place(item: tuple[tuple[str, str, str, float, int], list[Row]]) -> tuple[object, ...]:
        shape, setting, dtype, dropout, r = item[0]
        return _shape_place(shape), shape, setting, dtype != "float32", dropout, r

    return [
        (f"{shape}, {setting}, {dtype}, dropout {dropout:g}, r={r}", group)
        for (shape, setting, dtype, dropout, r), group in sorted(grouped(measured, key), key=place)
    ]


def _shape_place(shape: str) -> int:
    names = list(SHAPES)
    plain = plain_shape(shape)
    return names.index(plain) if plain in names else len(names)


def plain_shape(shape: str) -> str:
    """Return a shape's name without its depth."""
    return shape.partition(":")[0]


def grouped(
    measured: Iterable[Row], key: Callable[[Row], Hashable]
) -> list[tuple[tuple[object, ...], list[Row]]]:
    """Return the rows by key, in the order in which keys come first."""
    groups: dict[Hashable, list[Row]] = {}
    for row in measured:
        groups.setdefault(key(row), []).append(row)
    return list(groups.items())  # type: ignore[arg-type]


def variants_of(measured: Iterable[Row]) -> list[str]:
    """Return the variants that rows are of, in the order of the charts."""
    found = {row.variant for row in measured}
    return [name for name in VARIANTS if name in found] + sorted(found - set(VARIANTS))


def median_of(measured: Sequence[Row], **wanted: object) -> str:
    """Return the median of the newest of the rows that are wanted, or "" where there is none."""
    row = newest(measured, **wanted)
    return quantity_text(row.p50, row.unit) if row else ""


def ratio_of(measured: Sequence[Row], **wanted: object) -> str:
    """Return the ratio of the newest of the rows that are wanted, or "" where there is none."""
    return ratio_text(newest(measured, **wanted))


def ratio_text(row: Row | None) -> str:
    """Return the median of a row's ratio, with its 20th and 80th percentile unless exact."""
    if row is None or row.ratio is None:
        return ""
    if row.rounds == 1 or row.ratio_p20 is None or row.ratio_p80 is None:
        return number(row.ratio)
    return f"{number(row.ratio)} ({number(row.ratio_p20)}–{number(row.ratio_p80)})"


def number(value: float) -> str:
    """Write a ratio.

    >>> number(1.0449), number(0.001234)
    ('1.04', '0.0012')
    """
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def number_in(setting: str) -> int:
    """Return the first number in a setting such as "tokens 512"."""
    found = re.search(r"\d+", setting)
    return int(found.group()) if found else 0


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table without the columns that are empty in all lines."""
    kept = [i for i in range(len(header)) if i == 0 or any(line[i] for line in lines)]
    text = [f"| {' | '.join(line[i] for i in kept)} |" for line in (header, *lines)]
    text.insert(1, "|" + "---|" * len(kept))
    return "\n".join(text)

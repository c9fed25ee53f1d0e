"""The tables of the pages about performance that show a server."""

from collections.abc import Sequence

from benchmarks import serving, serving_clients, serving_mixed, serving_steps
from benchmarks.options import quantity_text
from benchmarks.results import Row, matching, newest
from benchmarks.tables import grouped, median_of, number_in, ratio_of, table
from benchmarks.variants import LORAKIT

_LOAD = (
    serving.THROUGHPUT,
    serving.IN_FLIGHT,
    *(serving.FIRST.format(percent) for percent in serving.PERCENTILES),
    *(serving.BETWEEN.format(percent) for percent in serving.PERCENTILES),
)
_CLIENTS = (
    serving_clients.ANSWERS_PER_S,
    serving_clients.REFUSED,
    serving_clients.WRONG,
    serving_clients.GROWTH,
)
_COMPARED = (
    (serving_steps.DECODE, serving_steps.BASE),
    (serving_mixed.MIXED, serving_mixed.BEST_STATIC),
    (serving.FIRST_TOKEN, serving.IDLE),
    (serving_steps.DELAY, ""),
    (serving_steps.PAUSE, serving_steps.WITHOUT_LOAD),
)


def serving_table(device_rows: Sequence[Row]) -> str:
    """Return a table for each comparison, one of open loops and one of clients."""
    parts = []
    for (shape, r), group in grouped(device_rows, lambda row: (row.shape, row.r)):
        label = f"{shape}, r={r}"
        for measure, reference in _COMPARED:
            found = matching(group, measure=measure)
            if found:
                what = f"{measure}, {found[0].setting}"
                parts += [f"**{label}**", _compared(what, reference, found)]
        for title, measures in (
            (serving.CLOSED, _LOAD),
            (serving.OPEN, _LOAD),
            (LORAKIT, _CLIENTS),
        ):
            lines = _by_setting(measures, matching(group, variant=title))
            if lines:
                parts += [f"**{label}**", table((title, *measures), lines)]
    return "\n\n".join(parts)


def _compared(what: str, reference: str, found: Sequence[Row]) -> str:
    """Return a line for each variant, with its ratio to one of them."""
    lines = [
        (name, _with_range(found, name), ratio_of(found, variant=name, ratio_to=reference))
        for name in dict.fromkeys(row.variant for row in found)
    ]
    return table((what, "", f"/ {reference}"), lines)


def _with_range(found: Sequence[Row], variant: str) -> str:
    row = newest(found, variant=variant)
    if row is None:
        return ""
    low, middle, high = (quantity_text(v, row.unit) for v in (row.p20, row.p50, row.p80))
    return f"{middle} ({low}–{high})"


def _by_setting(measures: Sequence[str], rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return a line for each setting in which the first of these was measured."""
    settings = dict.fromkeys(row.setting for row in matching(rows, measure=measures[0]))
    return [
        (setting, *(median_of(rows, measure=measure, setting=setting) for measure in measures))
        for setting in sorted(settings, key=number_in)
    ]

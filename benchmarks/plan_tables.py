"""The tables of docs/performance.md about the memory plan."""

from collections.abc import Sequence

from benchmarks.memory_plan import COUNTED, OFF, PEAK, PLANNED, PROCESS, RESIDENT, SAVED, SECONDS
from benchmarks.results import Row
from benchmarks.tables import grouped, median_of, table


def plan_table(device_rows: Sequence[Row]) -> str:
    """Return what was planned beside what was counted, and what planning itself takes."""
    lines, large = [], []
    for (shape, setting), group in grouped(device_rows, lambda row: (row.shape, row.setting)):
        name = f"{shape}, {setting}"
        seconds = median_of(group, measure=SECONDS, variant=PLANNED)
        if seconds:
            large.append((name, seconds, median_of(group, measure=PROCESS, variant=PLANNED)))
            continue
        cells = []
        for measure in (SAVED, PEAK):
            for variant in (PLANNED, COUNTED):
                cells.append(median_of(group, measure=measure, variant=variant))
            cells.append(median_of(group, measure=OFF.format(measure), variant=PLANNED))
        resident = median_of(group, measure=PEAK, variant=RESIDENT)
        lines.append((name, *cells, resident))
    header = ("", "saved, planned", "counted", "off by", "peak, planned", "counted", "off by")
    parts = [table((*header, "resident"), lines)] if lines else []
    if large:
        parts.append(table(("", "a plan takes", "memory of its process"), large))
    return "\n\n".join(parts)

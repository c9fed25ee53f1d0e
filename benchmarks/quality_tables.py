"""The table of ways to train that should be equally good."""

import statistics
from collections.abc import Sequence

from benchmarks.options import quantity_text
from benchmarks.results import Row, matching
from benchmarks.same_quality import POINTS, STEP, UNITS, WAYS
from benchmarks.tables import grouped, table


def quality_table(measured: Sequence[Row]) -> str:
    """Return a line for each quantity and a column for each way to train, over the seeds."""
    parts = []
    runs = [row for row in measured if row.measure in UNITS]
    for (setting,), group in grouped(runs, lambda row: (row.setting.rpartition(", ")[0],)):
        names = [name for name in WAYS if matching(group, variant=name)]
        lines = [
            (what, *(_over_seeds(matching(group, measure=what, variant=name)) for name in names))
            for what in UNITS
        ]
        lost = [row for row in matching(measured, unit=POINTS) if row.setting.startswith(setting)]
        for (what,), rows in grouped(lost, lambda row: (row.measure,)):
            lines.append((what, *(_difference(matching(rows, variant=name)) for name in names)))
        parts.append(table((setting, *names), lines))
    steps = matching(measured, measure=STEP)
    if steps:
        texts = [f"{row.variant}: {quantity_text(row.p50, row.unit)}" for row in steps]
        parts.append(f"{STEP.capitalize()}: {'; '.join(texts)}.")
    return "\n\n".join(parts)


def _over_seeds(runs: Sequence[Row]) -> str:
    """Return the mean, the standard deviation and the values of runs with different seeds."""
    values = [row.p50 for row in sorted(runs, key=lambda row: row.setting)]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    each = ", ".join(f"{value:.4g}" for value in values)
    return f"{statistics.mean(values):.4g}{spread} {runs[0].unit} ({each})"


def _difference(rows: Sequence[Row]) -> str:
    """Return the median of the differences and its range; "" for the way compared with."""
    if not rows:
        return ""
    [row] = rows
    return f"{row.p50:.2g} {row.unit} ({row.p20:.2g} to {row.p80:.2g})"

"""Rows of the benchmarks below the frozen limit, with made-up numbers."""

from collections.abc import Callable

from benchmarks import frozen_epochs, frozen_part, searches, together
from benchmarks.results import Row
from benchmarks.step import FORWARD_BACKWARD, WITH_OPTIMIZER

Make = Callable[..., list[Row]]


def together_rows(make: Make) -> list[Row]:
    """Return the rows of benchmarks.together."""
    made = []
    values = {together.ALONE: 1.0, together.TOGETHER: 0.5}
    for column, dtype in zip(together.COLUMNS, ("bfloat16", "bfloat16", "float32"), strict=True):
        where = {"setting": together.setting_of(*column), "dtype": dtype, "r": 8}
        for measure in (FORWARD_BACKWARD, WITH_OPTIMIZER):
            made += make("together", measure, "llama-69m", values, together.ALONE, **where)
    peaks = {name: 4e9 * value for name, value in values.items()}
    where = {"setting": together.MEMORY_SETTING, "unit": "B", "r": 8}
    return made + make("together", together.PEAK, "llama-69m", peaks, together.ALONE, **where)


def frozen_part_rows(make: Make) -> list[Row]:
    """Return the rows of benchmarks.frozen_part."""
    values = {frozen_part.ALL: 1.0}
    for share, (below_computed, below_kept) in zip(
        frozen_part.SHARES, ((0.8, 0.5), (0.6, 0.25)), strict=True
    ):
        values[frozen_part.computed(share)] = below_computed
        values[frozen_part.kept(share)] = below_kept
    return [
        row
        for measure in (FORWARD_BACKWARD, frozen_epochs.EPOCH)
        for reference in (frozen_part.ALL, frozen_part.computed("upper half"))
        for row in make("frozen_part", measure, "llama-69m", values, reference, setting="4 x 256")
    ]


def searches_rows(make: Make) -> list[Row]:
    """Return the rows of benchmarks.searches."""
    times = dict(zip(searches.WAYS, (100.0, 80.0, 60.0, 50.0), strict=True))
    made = []
    for setting in ("search: 8 trials", "study: 45 runs"):
        for measure, unit, factor in ((searches.SECONDS, "s", 1.0), (searches.PEAK, "B", 1e8)):
            values = {way: factor * value for way, value in times.items()}
            where = ("searches", measure, searches.SHAPE, values, searches.ALONE)
            made += make(*where, setting=setting, unit=unit, r=8)
    return made

"""Rows of the benchmarks below the frozen limit, with made-up numbers."""

from collections.abc import Callable

from benchmarks import frozen_part, together
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
    where = ("frozen_part", FORWARD_BACKWARD, "llama-69m")
    return [
        row
        for reference in (frozen_part.ALL, frozen_part.computed("upper half"))
        for row in make(*where, values, reference, setting="4 x 256")
    ]

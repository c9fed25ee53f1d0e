"""Rows of the benchmark of runs that train together, with made-up numbers."""

from collections.abc import Callable

from benchmarks import together
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

"""Rows of `claims.csv`: one of our figures, named as the published one it stands beside."""

from collections.abc import Sequence
from typing import Any

from benchmarks.claims import BENCHMARK
from benchmarks.options import Options
from benchmarks.results import Row, row


def claim_row(
    options: Options,
    claim: str,
    what: str,
    values: float | Sequence[float],
    unit: str,
    *,
    shape: str,
    setting: str = "",
    **others: Any,
) -> Row:
    """Make a row of a figure.

    Args:
        options: Where it comes from.
        claim: Such as "C3"; it is the row's variant.
        what: The figure, as `published.FIGURES` names it; it is the row's measure.
        values: One for a count, several for a spread.
        unit: As `published.FIGURES` has it.
        shape: The model or the layer.
        setting: What else matters.
        others: What `results.row` takes besides.
    """
    many = [float(value) for value in (values if isinstance(values, Sequence) else [values])]
    return row(
        options.origin,
        many,
        benchmark=BENCHMARK,
        measure=what,
        shape=shape,
        setting=setting,
        variant=claim,
        unit=unit,
        **others,
    )

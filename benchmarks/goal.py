"""One number that a benchmark has to reach."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One number to reach.

    Attributes:
        what: What the table calls it.
        where: Fields of the row it is read from. Without `ratio_to` the row's median counts, in
            its unit; with it the median of the ratio.
        must: What has to be reached.
        aim: What is hoped for, or None where that is the same.
        at_least: Whether more is better.
        unit: That of the row, where no ratio is read.
    """

    what: str
    where: dict[str, object]
    must: float
    aim: float | None = None
    at_least: bool = False
    unit: str = "s"

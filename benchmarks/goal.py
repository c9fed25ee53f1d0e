"""A number to reach, and what was reached of it."""

from dataclasses import dataclass

from benchmarks.results import Row


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


NOT_MEASURED = "not measured: "


@dataclass(frozen=True)
class Verdict:
    """What was reached of a goal.

    Attributes:
        row: The row that says so, or None where there is none.
        reached: The number, or None.
        text: "met", "met, with the aim", "missed" or "not measured: <reason>".
    """

    row: Row | None
    reached: float | None
    text: str

    @property
    def is_met(self) -> bool:
        """Whether a number says that the goal is reached."""
        return self.text.startswith("met")

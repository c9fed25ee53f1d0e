"""Requirements of `lorakit evaluate --require`, such as "accuracy>=0.9"."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from lorakit.errors import ConfigError, RequirementError, did_you_mean, first_few

_COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_FORM = re.compile(r"\s*(\S(?:.*?\S)?)\s*(>=|<=|>|<)\s*(\S+)\s*")


@dataclass(frozen=True)
class Requirement:
    """A metric and what it must be."""

    metric: str
    comparison: str
    value: float

    def __str__(self) -> str:
        """Return it as it is written."""
        return f"{self.metric}{self.comparison}{self.value:g}"

    def is_met_by(self, found: float) -> bool:
        """Return whether a value of the metric is as required; NaN never is."""
        return _COMPARISONS[self.comparison](found, self.value)


def parse_requirements(texts: Sequence[str]) -> list[Requirement]:
    """Read requirements.

    Raises:
        ConfigError: One is not a metric, a comparison and a number.

    >>> parse_requirements(["accuracy>=0.9"])
    [Requirement(metric='accuracy', comparison='>=', value=0.9)]
    """
    made = []
    for text in texts:
        found = _FORM.fullmatch(text)
        try:
            if found is None:
                raise ValueError
            made.append(Requirement(found[1], found[2], float(found[3])))
        except ValueError:
            raise ConfigError(
                f"Cannot read --require: got {text!r}, expected a metric, one of "
                f'{" ".join(_COMPARISONS)} and a number. Write it like "accuracy>=0.9".'
            ) from None
    return made


def check_requirements(
    requirements: Sequence[Requirement], metrics: Mapping[str, float]
) -> list[str]:
    """Check measured metrics.

    Args:
        requirements: What they must be.
        metrics: Values by key, such as "eval_f1_billing"; requirements may leave "eval_" out, or
            write the words of the table, "f1 billing" or "macro f1".

    Returns: A sentence for each requirement that is met.

    Raises:
        ConfigError: There is no such metric; names the nearest.
        RequirementError: Metrics are not as required; names all of them.
    """
    metrics = {key.removeprefix("eval_"): value for key, value in metrics.items()}
    requirements = [replace(one, metric=_key(one.metric, metrics)) for one in requirements]
    for one in requirements:
        if one.metric not in metrics:
            raise ConfigError(
                f"Cannot require {one}: got the metric {one.metric!r}, expected one of "
                f"{first_few(metrics, 20)}.{did_you_mean(one.metric, metrics)} Name one of them."
            )
    missed = [one for one in requirements if not one.is_met_by(metrics[one.metric])]
    if missed:
        got = "; ".join(f"{one.metric} {metrics[one.metric]:.4g}, expected {one}" for one in missed)
        raise RequirementError(
            f"The adapter is not as good as required: got {got}. Train it further, or lower the "
            "requirement."
        )
    return [f"As required: {one}, got {metrics[one.metric]:.4g}." for one in requirements]


def _key(written: str, metrics: Mapping[str, float]) -> str:
    """Return the key of a metric that is written in words, else what is written."""
    words = written.removeprefix("eval_").removeprefix("macro ").replace("_", " ")
    return next((key for key in metrics if key.replace("_", " ") == words), written)

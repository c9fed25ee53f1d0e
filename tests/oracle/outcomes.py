"""Which rows of the table are not simply equal: where either tool refuses, or PEFT is not right."""

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal, NamedTuple

from oracle.features import FEATURES
from oracle.models import KINDS
from oracle.operations import OPERATIONS


class Row(NamedTuple):
    """One row of the table."""

    kind: str
    feature: str
    operation: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a tool does in some rows, other than what is right.

    Attributes:
        features: Pattern of the features; alternatives are separated by "|".
        operations: Likewise of operations.
        kinds: Likewise of kinds.
        what: "refuses" raises an error; "differs" gives other outputs.
        message: Part of the error's text.
        reason: Why, for a reader of docs/adapters.md.
    """

    features: str = "*"
    operations: str = "*"
    kinds: str = "*"
    what: Literal["refuses", "differs"] = "refuses"
    message: str = ""
    reason: str

    def fits(self, row: Row) -> bool:
        """Return whether this is the outcome of a row."""
        patterns = (self.kinds, self.features, self.operations)
        return all(
            any(fnmatch(word, part) for part in pattern.split("|"))
            for word, pattern in zip(row, patterns, strict=True)
        )


LORAKIT = (
    Outcome(
        features="dora",
        operations="combined",
        message="got use_dora=True",
        reason="what DoRA adds depends on the base; merge such an adapter instead",
    ),
    Outcome(
        features="head|lora_only|all_biases",
        operations="combined",
        message="trained in full cannot be added up",
        reason="tensors trained in full, such as heads and biases, have no sum",
    ),
)
_KEPT_BIASES = "the trained biases go on acting where the adapter is off"
PEFT = (
    Outcome(
        features="rslora",
        operations="combined",
        what="differs",
        reason="the rsLoRA scaling of what is combined is left out",
    ),
    Outcome(
        features="head",
        operations="combined",
        message="modules_to_save",
        reason="modules trained in full have no sum",
    ),
    Outcome(
        features="lora_only|all_biases",
        operations="combined",
        message="supports only 1 adapter with bias",
        reason="one adapter with biases at a time",
    ),
    Outcome(
        features="lora_only|all_biases",
        operations="rows|off",
        what="differs",
        reason=_KEPT_BIASES,
    ),
    Outcome(
        features="dora",
        operations="rows",
        message="when DoRA is enabled",
        reason="not for DoRA",
    ),
)


def outcome(outcomes: tuple[Outcome, ...], row: Row) -> Outcome | None:
    """Return what a tool does in a row, or None where it does what is right."""
    return next((one for one in outcomes if one.fits(row)), None)


ROWS = tuple(
    Row(kind, feature, operation)
    for kind, model in KINDS.items()
    for feature, asked in FEATURES.items()
    if asked.options(model) is not None
    for operation in OPERATIONS
)

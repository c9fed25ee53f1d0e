"""What each family came to: recorded in a file, and compared with by the test."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

RECORDED = Path(__file__).parent / "outcomes.json"

CHECK_NAMES = (
    "forward",
    "gradients",
    "reload",
    "to PEFT",
    "from PEFT",
    "disable",
    "checkpointing",
    "merge",
    "from_pretrained",
)

Status = Literal["right", "refused", "not compared", "wrong"]


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check.

    Attributes:
        status: "refused" is an error of lorakit that says why; "not compared" means that
            transformers or PEFT does not pass alone.
        reason: The first sentence of what was said; empty where it is right.
    """

    status: Status
    reason: str = ""


@dataclass
class Found:
    """The outcomes of a family.

    Attributes:
        model: Class of the model.
        modules: Number of adapted modules.
        unreached: Number of those that this forward does not call, so that none of their weights
            has a gradient in the base either.
        checks: Outcome by name of the check.
    """

    model: str
    modules: int = 0
    unreached: int = 0
    checks: dict[str, Outcome] = field(default_factory=dict)

    @property
    def is_wrong(self) -> bool:
        """Whether any check is wrong."""
        return any(one.status == "wrong" for one in self.checks.values())


def as_json(found: dict[str, Found]) -> str:
    """Return the outcomes as a text with a line for each family."""
    lines = []
    for family in sorted(found):
        values = asdict(found[family])
        values["checks"] = {
            name: one["status"] if not one["reason"] else [one["status"], one["reason"]]
            for name, one in values["checks"].items()
        }
        lines.append(f"{json.dumps(family)}: {json.dumps(values, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def from_json(text: str) -> dict[str, Found]:
    """Read outcomes from their text."""
    found = {}
    for family, values in json.loads(text).items():
        checks = {
            name: Outcome(*([one] if isinstance(one, str) else one))
            for name, one in values.pop("checks").items()
        }
        found[family] = Found(**values, checks=checks)
    return found


def recorded() -> dict[str, Found]:
    """Return the outcomes that are recorded."""
    return from_json(RECORDED.read_text(encoding="utf-8"))

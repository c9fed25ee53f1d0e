"""What is known about one run beside its metrics, and which of its files are damaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.errors import LorakitError, MissingFileError
from lorakit.files.json_files import read_json_object
from lorakit.recipes import yaml_text
from lorakit.runs.compare import flatten
from lorakit.runs.metric_log import MetricLog, is_number

_MOST_CHARACTERS = 200_000
"""Largest recipe that is shown."""


@dataclass(frozen=True)
class Verdict:
    """What verdict.json says."""

    sentence: str
    outcome: str
    """One of better, worse, not distinguishable, too few examples; "" if nothing was compared."""


@dataclass(frozen=True)
class RunDetail:
    """The recipe of a run as plain values, and what its other files say."""

    path: Path
    recipe: Mapping[str, Any]
    """Empty if it cannot be read."""
    planned_bytes: float | None
    """The planned peak memory, or None if the run was not planned."""
    problems: tuple[str, ...]
    """A sentence for each damaged file."""
    recipe_text: str = ""
    """The recipe as it is written."""
    verdict: Verdict | None = None
    """Whether the adapter is better than the base; None if the run has not asked, or goes on."""

    def text(self, key: str) -> str:
        """Return a value of the recipe by dotted key as text; an empty one if it is not there."""
        value = flatten(self.recipe).get(key)
        return "" if value is None else str(value)

    def number(self, key: str) -> float | None:
        """Return a value of the recipe by dotted key, or None if it is not a number."""
        text = self.text(key)
        try:
            return float(text)
        except ValueError:
            return None

    def share_done(self, log: MetricLog) -> float | None:
        """Return the share of the planned steps that are done, from 0 to 1, or None if unknown."""
        if log.summary:
            return 1.0
        steps, epochs = (self.number(f"training.{k}") for k in ("max_steps", "num_train_epochs"))
        if steps is not None and steps > 0:
            return min(1.0, log.step / steps)
        return min(1.0, log.epoch / epochs) if epochs else None


def read_detail(path: Path) -> RunDetail:
    """Read what a run directory holds.

    Raises:
        MissingFileError: There is no run.
    """
    recipe_file, environment_file = path / "recipe.yaml", path / "environment.json"
    if not recipe_file.exists() and not (path / "metrics.jsonl").exists():
        raise MissingFileError(
            f"No run at {path}: there is no recipe.yaml in it, expected a directory that "
            "`lorakit train` wrote. Choose one from the list of runs."
        )
    problems: list[str] = []
    recipe: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    try:
        recipe = yaml_text.read_mapping(recipe_file)
    except LorakitError as error:
        problems.append(str(error))
    try:
        environment = read_json_object(environment_file)
    except ValueError as error:
        problems.append(
            f"Cannot read {environment_file}: {error}, expected a JSON object with the versions "
            "and the machine of the run. Restore it from a copy to resume the run."
        )
    if (path / "report.md").exists() and not (path / "adapter" / "adapter_config.json").exists():
        problems.append(
            f"No adapter at {path / 'adapter'}: it has no adapter_config.json, but the report says "
            "that the run is finished. Restore the directory, or clone the run and train again."
        )
    planned = environment.get("planned_bytes")
    planned_bytes = float(planned) if planned is not None and is_number(planned) else None
    verdict = _verdict(path / "verdict.json", problems)
    return RunDetail(path, recipe, planned_bytes, tuple(problems), _text_of(recipe_file), verdict)


def _verdict(file: Path, problems: list[str]) -> Verdict | None:
    """Return what a file says, or add a sentence to `problems` if it is damaged."""
    if not file.exists():
        return None
    try:
        facts = read_json_object(file)
        sentence, outcome = facts.get("sentence"), facts.get("outcome")
        if sentence is None:  # nothing could be measured
            return None
        if not isinstance(sentence, str) or not isinstance(outcome, str | None):
            raise ValueError("its sentence or its outcome is not a text")
    except ValueError as error:
        problems.append(
            f"Cannot read {file}: {error}, expected a JSON object with the verdict on the adapter. "
            "Delete it; report.md begins with the same sentence."
        )
        return None
    return Verdict(sentence, outcome or "")


def _text_of(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MOST_CHARACTERS)
    except OSError:
        return ""

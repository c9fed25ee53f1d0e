"""Show runs that train together: short lines, each with the name of its run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lorakit.analysis.metric_text import metric_name
from lorakit.cli.views.console import number_text, say
from lorakit.cli.views.progress import SHOWN_METRICS, step_text


class GroupView:
    """Shows the events of several runs."""

    def __init__(self, names: Sequence[str]):
        """Create the view.

        Args:
            names: A short name of each run.
        """
        self.names = tuple(names)
        self.opened: set[int] = set()
        self._width = max(map(len, self.names))

    def __call__(self, run: int, event: str, payload: dict[str, Any]) -> None:
        """Show an event of one run."""
        if event == "injected":
            count = payload["parameter_count"]
            self.line(run, f"trainable {count.trainable:,} of {count.total:,} parameters")
        elif event == "data":
            validation = number_text(payload["validation_examples"] or "no")
            examples = number_text(payload["train_examples"])
            self.line(run, f"{examples} training examples, {validation} for validation")
            self._notes(run, payload)
        elif event == "dtype":
            self.line(run, payload["note"])
        elif event == "run_opened":
            self.opened.add(run)
            resumed = payload["resumed_from"]
            after = f", resuming from {Path(resumed).name}" if resumed else ""
            self.line(run, f"training in {payload['path']}{after}")
        elif event == "notes":
            self._notes(run, payload)
        elif event == "step" and payload["logged"]:
            self.line(run, step_text(payload))
        elif event == "evaluation":
            first = islice(payload["metrics"].items(), SHOWN_METRICS)
            values = ", ".join(f"{metric_name(key)} {number_text(value)}" for key, value in first)
            self.line(run, f"after epoch {payload.get('epoch') or 0:.4g}: {values}")
        elif event == "finished":
            self.line(run, f"finished after {payload['result'].steps:,} steps")

    def line(self, run: int, text: str) -> None:
        """Print a line of one run."""
        say(f"{self.names[run]:<{self._width}}  {text}")

    def _notes(self, run: int, payload: dict[str, Any]) -> None:
        for note in payload["notes"]:
            self.line(run, note)


def short_names(outputs: Sequence[str]) -> list[str]:
    """Return the last parts of paths that tell them apart.

    >>> short_names(["runs/a/one", "runs/b/one", "runs/b/two"])
    ['a/one', 'b/one', 'b/two']
    """
    parts = [Path(output).parts for output in outputs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len({*names}) == len(names):
            return names
    return [*outputs]

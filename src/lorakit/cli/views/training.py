"""Show a run from its events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lorakit.cli.views.console import heading, number_text, pairs, say, table
from lorakit.cli.views.progress import TrainingProgress

if TYPE_CHECKING:
    from lorakit.injection import Injection, ParameterCount


class RunView:
    """Shows each event of a run."""

    def __init__(self) -> None:
        self.progress = TrainingProgress()
        self.path: Path | None = None
        """The run directory; None until it is open."""
        self.is_finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def __call__(self, event: str, payload: dict[str, Any]) -> None:
        """Show one event."""
        if event == "data":
            show_data(payload)
            self.progress.name_metrics(payload["task_type"], payload["labels"])
        elif event == "dtype":
            say(payload["note"])
        elif event == "injected":
            show_injection(payload["injection"], payload["parameter_count"])
        elif event == "run_opened":
            self.path = Path(payload["path"])
            show_opening(payload)
        elif event == "notes":
            for note in payload["notes"]:
                say(f"  {note}")
        elif event == "step":
            self.progress.step(payload)
        elif event == "evaluation":
            self.progress.evaluation(payload)
        elif event == "comparing":
            number = number_text(payload["examples"])
            say(f"Comparing with the base on {number} examples (evaluation.compare_with_base) ...")
        elif event == "finished":
            self.is_finished = True
            self.progress.stop()


def show_data(payload: Mapping[str, Any]) -> None:
    """Print the number of examples, and notes on how they were changed."""
    heading("Data")
    count = payload["train_examples"]
    pairs(
        {
            "training examples": "read when needed" if count is None else number_text(count),
            "validation examples": number_text(payload["validation_examples"] or "none"),
        }
    )
    for note in payload["notes"]:
        say(f"  {note}")


def show_injection(injection: Injection, count: ParameterCount) -> None:
    """Print the modules the adapter matched, and the number of trained parameters."""
    heading("Adapter")
    rows = injection.rows()
    columns = list(rows[0]) if rows else []
    table(columns, [[number_text(row[name]) for name in columns] for row in rows])
    if injection.heads:
        say(f"  trained in full: {', '.join(injection.heads)}")
    if injection.biases:
        say(f"  trained biases: {len(injection.biases)}")
    for paths, count_of_rows in injection.tokens:
        say(f"  trained tokens: {count_of_rows} of {' = '.join(paths)}")
    for path, reason in injection.skipped:
        if path not in injection.heads:
            say(f"  left out: {path} ({reason})")
    say(
        f"  trainable: {count.trainable:,} of {count.total:,} parameters "
        f"({100 * count.trainable_share:.4g}%)"
    )
    for note in injection.notes:
        say(f"  {note}")
    say(f"  dtypes: factors {injection.factor_dtype}, base {injection.base_dtype}")


def show_opening(payload: Mapping[str, Any]) -> None:
    """Print the run directory, and the checkpoint that a resumed run continues from."""
    heading(f"Training in {payload['path']}")
    if payload["resumed_from"]:
        say(f"  resuming from {payload['resumed_from']}")
    for path, problem in payload["removed"].items():
        say(f"  removed {path}: {problem}")
    if payload["note"]:
        say(f"  {payload['note']}")

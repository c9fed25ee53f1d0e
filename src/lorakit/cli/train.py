"""`lorakit train`: train an adapter as a recipe says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.console import (
    INTERRUPTED,
    closing,
    complain,
    duration_text,
    heading,
    number_text,
    pairs,
    quoted,
    say,
    table,
)
from lorakit.cli.progress import TrainingProgress, metric_name

if TYPE_CHECKING:
    from lorakit.injection import Injection, ParameterCount
    from lorakit.training.recipe import Recipe
    from lorakit.training.run import TrainResult


def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes, such as lora.r=16."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Show what would be trained and on what, and stop."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")
    ] = False,
) -> None:
    """Train an adapter as a recipe says."""
    changes = overrides or []
    from lorakit.training.recipe import Recipe

    loaded = Recipe.load(recipe, changes)
    say(f"{loaded.task} on {loaded.model}, from {recipe}")
    command = " ".join(["lorakit train", quoted(recipe), *map(quoted, changes)])
    if dry_run:
        show_dry_run(loaded)
        closing([], {command: "trains"})
        return
    result = train_visibly(loaded, command, resume=resume)
    show_result(result)
    closing(result.files, next_commands(loaded, result.run_dir))


def train_visibly(recipe: Recipe, command: str, *, resume: bool = False) -> TrainResult:
    """Train and draw it.

    Args:
        recipe: What to train.
        command: The command to repeat with --resume after Ctrl-C.
        resume: Whether to go on with a run.
    """
    from lorakit.training.run import train as train_adapter

    with RunView() as view:
        try:
            return train_adapter(recipe, resume=resume, on_event=view)
        except KeyboardInterrupt:
            view.progress.stop()
            how = f" Go on from the last complete checkpoint with: {command} --resume"
            complain("Interrupted." + (how if view.is_open else " Nothing has been written."))
            raise typer.Exit(INTERRUPTED) from None


class RunView:
    """Takes a run's events and draws each."""

    def __init__(self) -> None:
        self.progress = TrainingProgress()
        self.is_open = False

    def __enter__(self) -> RunView:
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()

    def __call__(self, event: str, payload: dict[str, Any]) -> None:
        """Draw one event."""
        if event == "data":
            show_data(payload)
        elif event == "injected":
            show_injection(payload["injection"], payload["parameter_count"])
        elif event == "run_opened":
            self.is_open = True
            show_opening(payload)
        elif event == "step":
            self.progress.step(payload)
        elif event == "evaluation":
            self.progress.evaluation(payload)
        elif event == "finished":
            self.progress.stop()


def show_data(payload: Mapping[str, Any]) -> None:
    """Print how many rows there are, and what was done to them."""
    heading("Data")
    pairs(
        {
            "training rows": number_text(payload["train_rows"]),
            "validation rows": number_text(payload["validation_rows"]) or "none",
        }
    )
    for note in payload["notes"]:
        say(f"  {note}")


def show_injection(injection: Injection, count: ParameterCount) -> None:
    """Print what the adapter matched, and how many parameters are trained."""
    heading("Adapter")
    rows = injection.rows()
    columns = list(rows[0]) if rows else []
    table(columns, [[number_text(row[name]) for name in columns] for row in rows])
    if injection.heads:
        say(f"  trained in full: {', '.join(injection.heads)}")
    if injection.biases:
        say(f"  trained biases: {len(injection.biases)}")
    for path, reason in injection.skipped:
        say(f"  left out: {path} ({reason})")
    say(
        f"  trainable: {count.trainable:,} of {count.total:,} parameters "
        f"({100 * count.trainable_share:.4g}%)"
    )
    say(f"  dtypes: factors {injection.factor_dtype}, base {injection.base_dtype}")


def show_opening(payload: Mapping[str, Any]) -> None:
    """Print where the run is written and where a resumed one goes on."""
    heading(f"Training in {payload['path']}")
    if payload["resumed_from"]:
        say(f"  going on from {payload['resumed_from']}")
    for path in payload["removed"]:
        say(f"  removed {path}, which was incomplete")
    if payload["note"]:
        say(f"  {payload['note']}")


def show_result(result: TrainResult) -> None:
    """Print how training ended."""
    heading(f"Trained {result.steps:,} steps in {duration_text(result.wall_s)}")
    metrics = {"mean training loss": result.train_loss}
    metrics |= {f"validation {metric_name(key)}": v for key, v in result.metrics.items()}
    pairs({name: number_text(value) for name, value in metrics.items()})


def next_commands(recipe: Recipe, run: Path) -> dict[str, str]:
    """Return what to type after a run."""
    name, merged = quoted(run), quoted(f"{run}-merged")
    example = {"SEQ_CLS": "classifies", "TOKEN_CLS": "tags"}.get(recipe.task, "goes on from")
    return {
        f'lorakit generate {name} "..." --base': f"{example} a text, with the adapter and without",
        f"lorakit evaluate {name} --data FILE": "measures it on other data",
        f"lorakit inspect {name}": "shows what it is made of",
        f"lorakit merge {name} {merged}": "writes an ordinary checkpoint",
        f"tensorboard --logdir {name}": "shows the curves",
    }

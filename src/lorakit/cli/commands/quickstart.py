"""`lorakit quickstart`: train on a model and data that need no network."""

from __future__ import annotations

from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.commands.train import exit_if_signalled, stopping_on_signals
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.views.console import (
    closing,
    duration_text,
    heading,
    number_text,
    say,
    shell_quote,
    size_text,
    table,
)
from lorakit.cli.views.result import show_verdict, warn_if_chance
from lorakit.cli.views.training import RunView

if TYPE_CHECKING:
    from lorakit.quickstart.run import Example, QuickstartResult

DEFAULT_OUTPUT = Path("quickstart-run")
EXAMPLE_LINES = 3
EXAMPLE_WIDTH = 74


def quickstart(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="New directory; by default quickstart-run, or the first unused of "
            "quickstart-run-2, -3, ...",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Also train only the head, and all weights, for comparison."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random numbers.")] = 42,
) -> None:
    """Train a small model on docstrings of this Python, offline."""
    folder = output or free_directory(DEFAULT_OUTPUT)
    say("Teaching a language model of 4.5 million parameters which package a docstring documents.")
    say("Model and text are on this machine; no network is needed.")
    from lorakit.quickstart.run import quickstart as run_quickstart

    hide_loading_bars()
    command = f"lorakit train {shell_quote(folder / 'lora' / 'recipe.yaml')}"
    with QuickstartView() as view, stopping_on_signals(view, command) as stop:
        result = run_quickstart(folder, seed=seed, compare=compare, on_event=view, stop=stop)
    show_methods(result)
    show_verdict(result.training)
    warn_if_chance(result.training)
    for example in result.examples:
        show_example(example)
    run = shell_quote(result.training.run_dir)
    closing(
        [folder / "data", *result.training.files],
        {
            f'lorakit generate {run} "Parse a date."': "classifies a docstring that you write",
            f"lorakit inspect {run}": "shows the contents of the adapter",
            f"lorakit merge {run} {shell_quote(folder / 'merged')}": "writes a plain checkpoint",
            f"lorakit train {run}/recipe.yaml output={shell_quote(folder / 'r2')} lora.r=2": (
                "trains again with a smaller rank"
            ),
            "lorakit init --task SEQ_CLS": "writes a recipe for your model and data",
        },
    )
    exit_if_signalled()


def free_directory(path: Path) -> Path:
    """Return a directory that does not exist yet: the given one, or with a number as suffix."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in count(2))
    return next(found for found in chain([path], numbered) if not found.exists())


class QuickstartView(RunView):
    """Shows the training of each method; that of LoRA in full."""

    def __call__(self, event: str, payload: dict[str, Any]) -> None:
        """Show one event."""
        if event == "collected":
            heading("Docstrings of this Python's ten largest packages")
            say(f"  {', '.join(payload['labels'])}")
        elif event == "method":
            self.progress.stop()
            if self.path is not None:
                heading(f"For comparison: {payload['method']}")
        else:
            super().__call__(event, payload)


def show_methods(result: QuickstartResult) -> None:
    """Print the accuracy of each method before and after training."""
    heading("Before and after")
    rows = [
        (
            method.method,
            f"{100 * method.accuracy_before:.1f}%",
            f"{100 * method.accuracy:.1f}%",
            number_text(method.trainable_parameters),
            size_text(method.saved_bytes),
            duration_text(method.duration_s),
        )
        for method in result.methods
    ]
    table(("method", "accuracy before", "after", "trained", "saved size", "time"), rows)
    say(
        "Before: with a new, untrained head; guessing the commonest package gives "
        f"{100 * result.guessing_accuracy:.1f}%. Saved size: in float32; the base's checkpoint has "
        f"{size_text(result.checkpoint_bytes)} in bfloat16."
    )


def show_example(example: Example) -> None:
    """Print a docstring, its label and the prediction."""
    heading("A docstring the model has not been trained on")
    lines = [line.strip() for line in example.text.splitlines() if line.strip()]
    for line in lines[:EXAMPLE_LINES]:
        say("  | " + (line if len(line) <= EXAMPLE_WIDTH else line[: EXAMPLE_WIDTH - 4] + " ..."))
    if len(lines) > EXAMPLE_LINES:
        say("  | ...")
    verdict = "right" if example.prediction == example.label else "wrong"
    say(
        f"  from {example.label}; the model says {example.prediction} "
        f"({100 * example.probability:.0f}%): {verdict}"
    )

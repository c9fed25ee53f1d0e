"""`lorakit quickstart`: the whole road on a model and data that need no network."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.commands.train import exit_if_signalled, stopping_on_signals, warn_of_chance
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
from lorakit.cli.views.training import RunView

if TYPE_CHECKING:
    from lorakit.quickstart.results import Example, QuickstartResult

DEFAULT_OUTPUT = Path("quickstart-run")
EXAMPLE_LINES = 3
EXAMPLE_WIDTH = 74


def quickstart(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="New directory; by default quickstart-run, or the first free one of "
            "quickstart-run-2, -3 ...",
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also train the head alone, and every weight.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 42,
) -> None:
    """Train a small model on this Python's docstrings."""
    folder = output or free_directory(DEFAULT_OUTPUT)
    say("Teaching a language model of 4.5 million parameters which package a docstring documents.")
    say("Model and text are on this machine; no network is needed.")
    from lorakit.quickstart.run import quickstart as run_quickstart

    hide_loading_bars()
    command = f"lorakit train {shell_quote(folder / 'lora' / 'recipe.yaml')}"
    with QuickstartView() as view, stopping_on_signals(view, command) as stop:
        result = run_quickstart(folder, seed=seed, compare=compare, on_event=view, stop=stop)
    show_methods(result)
    warn_of_chance(result.training)
    for example in result.examples:
        show_example(example)
    run = shell_quote(result.training.run_dir)
    closing(
        [folder / "data", *result.training.files],
        {
            f'lorakit generate {run} "Parse a date."': "classifies a docstring of your own",
            f"lorakit inspect {run}": "shows what the adapter is made of",
            f"lorakit merge {run} {shell_quote(folder / 'merged')}": "writes an ordinary checkpoint",
            f"lorakit train {run}/recipe.yaml output={shell_quote(folder / 'r2')} lora.r=2": (
                "trains again with a smaller rank"
            ),
            "lorakit init --task SEQ_CLS": "writes a recipe for your own model and data",
        },
    )
    exit_if_signalled()


def free_directory(wished: Path) -> Path:
    """Return a directory that is not there yet: as wished, or with a number behind."""
    return next(path for path in numbered_paths(wished) if not path.exists())


def numbered_paths(path: Path) -> Iterator[Path]:
    """Yield a path, then the same with "-2", "-3" and so on behind."""
    yield path
    yield from (path.with_name(f"{path.name}-{number}") for number in count(2))


class QuickstartView(RunView):
    """Draws each method's training; only that of LoRA in full."""

    def __enter__(self) -> QuickstartView:
        return self

    def __call__(self, event: str, payload: dict[str, Any]) -> None:
        """Draw one event."""
        if event == "collected":
            heading("Docstrings of this Python's ten largest packages")
            say(f"  {', '.join(payload['labels'])}")
        elif event == "method":
            self.progress.stop()
            if self.is_open:
                heading(f"For comparison: {payload['method']}")
        else:
            super().__call__(event, payload)


def show_methods(result: QuickstartResult) -> None:
    """Print the table of before and after."""
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
    table(("method", "accuracy before", "after", "trained", "to save", "time"), rows)
    say(
        f"Before: with a new, untrained head; guessing gives {100 * result.chance:.0f}%. "
        f"To save: in float32; the base's checkpoint has {size_text(result.checkpoint_bytes)} in "
        "bfloat16."
    )


def show_example(example: Example) -> None:
    """Print a docstring, the truth and what the model says."""
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

"""`lorakit blame`: the training examples behind an answer or behind the mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.paths import adapter_location, run_of
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.views.console import closing, heading, number_text, say, shell_quote, table
from lorakit.cli.views.training import RunView
from lorakit.errors import ConfigError, MissingFileError, OutputExistsError

if TYPE_CHECKING:
    from lorakit.training.influence import Blame, Retrained
    from lorakit.training.setup import Setup

_MOST_CHARACTERS = 60
"""Characters of a column that the table shows."""


def blame(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    answer: Annotated[
        str | None,
        typer.Argument(
            metavar="ANSWER", help="An answer of the adapter; for SEQ_CLS a text that it labels."
        ),
    ] = None,
    mistakes: Annotated[
        bool, typer.Option("--mistakes", help="Ask about the mistakes on the validation examples.")
    ] = False,
    prompt: Annotated[
        str | None, typer.Option(help="What the answer answers, where examples have prompts.")
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Label of a text; by default what the adapter predicts.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of examples to list.")] = 20,
    output: Annotated[
        Path | None, typer.Option(help="File for all examples, one JSON object per line.")
    ] = None,
    drop: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="With --retrain: leave out the first N examples."),
    ] = None,
    retrain: Annotated[
        bool,
        typer.Option("--retrain", help="With --drop N: train again without them, and compare."),
    ] = False,
) -> None:
    """Find the training examples behind an answer or the mistakes.

    Raises:
        ConfigError: The question is not one, or does not fit the run.
        OutputExistsError: The file of --output exists.
        MissingFileError: Its directory does not exist, or there is no run.
    """
    if (answer is None) != mistakes:
        got = "neither" if answer is None else "both"
        raise ConfigError(
            f"One question at a time: got {got} an answer and --mistakes, expected one of them. "
            'Write lorakit blame RUN "an answer", or lorakit blame RUN --mistakes.'
        )
    if (drop is None) == retrain:
        there, missing = ("--retrain", "--drop N") if retrain else ("--drop", "--retrain")
        raise ConfigError(f"{there} requires {missing}: got it alone. Add {missing}.")
    if drop is not None and not mistakes:
        raise ConfigError(
            "Only examples behind mistakes are dropped: got --drop with an answer, expected "
            "--mistakes. Ask with --mistakes."
        )
    if output is not None and output.exists():
        raise OutputExistsError(
            f"Cannot write {output}: got a file that already exists, expected a new name. Choose "
            "another --output."
        )
    if output is not None and not output.parent.is_dir():
        raise MissingFileError(
            f"Cannot write {output}: got no directory {output.parent}, expected one that exists. "
            "Create it, or choose another --output."
        )
    location = adapter_location(run)
    from lorakit.training.influence import blame as rank
    from lorakit.training.influence import retrain_without, run_without

    directory = run_of(location) or location

    def check(setup: Setup) -> None:
        if drop is not None:
            run_without(directory, setup, drop)
        number = len(setup.splits.train)
        say(f"Computing the gradients of {number:,} training examples of {run} ...")

    hide_loading_bars()
    found = rank(location, answer, prompt=prompt, label=label, check=check)
    for note in (found.about, *found.notes, *found.note_on_signs(top)):
        say(f"  {note}")
    heading(found.heading(top))
    table(*example_rows(found, top))
    written = [] if output is None else [_write(found, output)]
    name = shell_quote(run)
    following = {
        f"lorakit blame {name} --mistakes --drop 20 --retrain": "trains without the 20 worst"
    }
    if drop is not None:
        heading(f"Training without the first {drop:,} examples")
        with RunView() as view:
            compared = retrain_without(directory, found, drop, on_event=view)
        show_retrained(compared, drop)
        written += [compared.result.run_dir, compared.data]
        new = shell_quote(compared.result.run_dir)
        following = {f"lorakit inspect {new}": "shows the adapter without them"}
    closing(written, following)


def example_rows(found: Blame, top: int) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and one row for each of the first examples."""
    columns = list(found.rows[0].values) if found.rows else []
    rows = [
        (
            f"{row.share:+.2%}",
            found.place(row),
            *(_shorten(row.values[column]) for column in columns),
        )
        for row in found.rows[:top]
    ]
    return ("influence", "where", *columns), rows


def show_retrained(compared: Retrained, drop: int) -> None:
    """Print the metrics of a run and of the one without some examples."""
    from lorakit.adapters.inference_settings import InferenceSettings
    from lorakit.analysis.metric_text import metric_text

    settings = InferenceSettings.load(compared.result.adapter_path)
    heading(f"The same run without the first {drop:,} examples")
    rows = [
        (
            metric_text(key, settings),
            number_text(before),
            number_text(compared.after.get(key)),
            f"{compared.after[key] - before:+.4g}" if key in compared.after else "",
        )
        for key, before in compared.before.items()
    ]
    table(("on the validation examples", "before", "without them", "difference"), rows)


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


def _write(found: Blame, output: Path) -> Path:
    from lorakit.files.atomic import write_text

    lines = [
        {
            "rank": rank,
            "influence": row.share,
            "source": row.file or found.source,
            "example": row.number,
            "line": row.line,
            "values": row.values,
        }
        for rank, row in enumerate(found.rows, start=1)
    ]
    write_text(output, "".join(json.dumps(line, default=str) + "\n" for line in lines))
    return output

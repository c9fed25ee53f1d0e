"""`lorakit blame`: the training examples behind an answer or behind the mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.paths import adapter_location, run_of
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.views.console import closing, heading, number_text, say, shell_quote, table
from lorakit.errors import ConfigError, OutputExistsError

if TYPE_CHECKING:
    from lorakit.training.influence import Blame, Blamed, Retrained

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
    """Rank the training examples by their influence on an answer or on the mistakes.

    Raises:
        ConfigError: The question is not one, or does not fit the run.
        OutputExistsError: The file of --output exists.
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
    location = adapter_location(run)
    from lorakit.training.influence import blame as rank
    from lorakit.training.influence import retrain_without

    hide_loading_bars()
    say(f"Computing the gradients of the training examples of {run} ...")
    found = rank(location, answer, prompt=prompt, label=label)
    for note in (found.about, *found.notes):
        say(f"  {note}")
    what = "that made the mistakes worst" if mistakes else "that made the answer likeliest"
    heading(f"The {min(top, len(found.rows)):,} examples {what}, of {len(found.rows):,}")
    table(*example_rows(found, top))
    written = [] if output is None else [_write(found, output)]
    name = shell_quote(run)
    following = {f"lorakit blame {name} --mistakes --drop 20 --retrain": "trains without the worst"}
    if drop is not None:
        compared = retrain_without(run_of(location) or location, found, drop)
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
            place_text(found, row),
            *(_shortened(row.values[column]) for column in columns),
        )
        for row in found.rows[:top]
    ]
    return ("influence", "where", *columns), rows


def place_text(found: Blame, row: Blamed) -> str:
    """Return the file and line of an example, or its number if there are no lines.

    With the line after a colon, editors open it.
    """
    if row.line is None:
        return f"{found.source}, example {row.number:,}"
    return f"{found.source}:{row.line}"


def show_retrained(compared: Retrained, drop: int) -> None:
    """Print the metrics of a run and of the one without some examples."""
    heading(f"The same run without the first {drop:,} examples")
    rows = [
        (
            key.removeprefix("eval_"),
            number_text(before),
            number_text(compared.after.get(key)),
            f"{compared.after[key] - before:+.4g}" if key in compared.after else "",
        )
        for key, before in compared.before.items()
    ]
    table(("on the validation examples", "before", "without them", "difference"), rows)


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


def _write(found: Blame, output: Path) -> Path:
    from lorakit.files.atomic import write_text

    lines = [
        {
            "rank": rank,
            "influence": row.share,
            "source": found.source,
            "example": row.number,
            "line": row.line,
            "values": row.values,
        }
        for rank, row in enumerate(found.rows, start=1)
    ]
    write_text(output, "".join(json.dumps(line, default=str) + "\n" for line in lines))
    return output

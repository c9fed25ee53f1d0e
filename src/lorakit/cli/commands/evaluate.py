"""`lorakit evaluate`: measure a trained adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorakit.cli.metric_requirements import check_requirements, parse_requirements
from lorakit.cli.paths import RECIPE_NAME, adapter_location, require_place_of_file, run_of
from lorakit.cli.quiet import hide_loading_bars
from lorakit.cli.shared_arguments import RunOrAdapter
from lorakit.cli.views.console import (
    closing,
    heading,
    merged_name,
    number_text,
    say,
    shell_quote,
    table,
)
from lorakit.cli.views.progress import showing_data_progress
from lorakit.errors import ConfigError, escaped, first_few

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe

_OF_TRAINING = ("lora", "start_from", "frozen_part", "evaluation", "search", "study", "output")
"""Keys that a trained adapter does not depend on any more."""


def evaluate(
    adapter: RunOrAdapter,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Changes to the recipe, such as data.max_length=64."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Examples to measure on: csv, json, jsonl, parquet, saved dataset or hub id; by "
            "default the recipe's validation examples."
        ),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Maximum number of examples.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Recipe with base and data; by default that of the run."),
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="Also measure the base without the adapter.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Predictions to write, as JSON Lines; by default evaluation/predictions.jsonl in "
            "the run directory, which the next evaluation replaces."
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC>=VALUE",
            help='End with exit code 1 unless the adapter reaches this, such as "accuracy>=0.9".',
        ),
    ] = None,
) -> None:
    """Measure a trained adapter on validation data.

    The training data are not read if --data or the recipe names validation data.
    """
    requirements = parse_requirements(require or [])
    refuse_ignored(
        [word for word in overrides or [] if key_of(word).partition(".")[0] in _OF_TRAINING],
        "a change to the data, the base or the evaluation, as the adapter stays as it is",
    )
    location = adapter_location(adapter)
    from lorakit.analysis.metric_text import metric_text
    from lorakit.recipes.run_directory import RunDirectory, find_adapter
    from lorakit.training.evaluation import measure, settings_beside

    if output is not None:
        _require_place(output, data)  # before anything is measured
    hide_loading_bars()
    loaded = recipe_of(location, recipe, overrides or [])

    def listen(event: str, payload: dict[str, Any]) -> None:
        if event == "data":
            number = min(payload["validation_examples"], rows or payload["validation_examples"])
            what = data or "the validation data"
            say(f"Measuring {location} on {number:,} examples of {what} ...")
            for note in payload["notes"]:
                say(f"  {note}")

    options: dict[str, Any] = {"data": data, "max_rows": rows, "with_base": base}
    with showing_data_progress():
        made = measure(location, loaded, **options, on_event=listen)
    found = {"adapter": made.metrics}
    if made.base_metrics is not None:
        found["base alone"] = made.base_metrics
    heading("Metrics")
    settings = settings_beside(find_adapter(location)[0])
    table(
        ("", *found),
        [
            (
                metric_text(key, settings),
                *(number_text(each[key]) if key in each else None for each in found.values()),
            )
            for key in dict.fromkeys(key for each in found.values() for key in each)
        ],
    )
    if made.verdict is not None:
        for note in made.verdict.notes:
            say(f"  {note}")
        say(f"  {made.verdict.sentence or ''}", style="bold")
    run = run_of(location)
    written = output
    if written is None and run is not None and made.predictions is not None:
        written = RunDirectory(run).evaluated_file
    if written is not None:
        made.write_predictions(written)
    for met in check_requirements(requirements, found["adapter"]):
        say(f"  {met}")
    name = shell_quote(adapter)
    closing(
        [] if written is None else [written],
        {
            f'lorakit generate {name} "..."': "tries it on a text",
            f"lorakit merge {name} {merged_name(adapter)}": "writes a plain checkpoint",
        },
    )


def _require_place(output: Path, data: str | None) -> None:
    """Refuse an output that cannot be written, or would replace the data that are measured on.

    Raises:
        ConfigError: It is a folder, below a file, or the data.
    """
    require_place_of_file(output, "predictions")
    if data is not None and output.exists() and Path(data).exists() and output.samefile(data):
        raise ConfigError(
            f"Cannot write predictions to '{output}': it holds the data to measure on, expected a "
            "new file, or one to replace. Name another --output."
        )


def key_of(override: str) -> str:
    """Return the key of an override such as "data.text=review"."""
    return override.partition("=")[0].strip()


def refuse_ignored(overrides: list[str], expected: str) -> None:
    """Refuse changes to the recipe that would have no effect.

    Args:
        overrides: The changes without effect.
        expected: What is expected instead, for the message.

    Raises:
        ConfigError: There are some.
    """
    if overrides:
        got = first_few([escaped(word) for word in overrides])
        raise ConfigError(
            f"Cannot apply the overrides: got {got}, expected {expected}. Leave it out."
        )


def recipe_of(location: str | Path, given: Path | None, overrides: list[str]) -> Recipe | None:
    """Return the recipe to evaluate with, or None for the unchanged recipe of the run.

    Raises:
        ConfigError: There is no recipe to which the overrides apply.
    """
    from lorakit.recipes.recipe import Recipe

    run = run_of(location)
    file = given or (run / RECIPE_NAME if run else None)
    if given is None and not overrides:
        return None
    if file is None:
        raise ConfigError(
            f"Cannot apply {' '.join(overrides)}: there is no {RECIPE_NAME} beside {location}, "
            "expected one. Give it with --recipe."
        )
    return Recipe.load(file, overrides)

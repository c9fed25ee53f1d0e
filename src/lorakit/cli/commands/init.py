"""`lorakit init`: write a commented recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lorakit.cli.views.console import closing, say, shell_quote
from lorakit.errors import (
    ConfigError,
    MissingFileError,
    OutputExistsError,
    did_you_mean,
    escaped,
)

if TYPE_CHECKING:
    from lorakit.recipes.template import ObjectiveName, TaskName
    from lorakit.training.recognition import Recognized


def init(
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="SEQ_CLS labels texts, TOKEN_CLS labels words, CAUSAL_LM continues a text or "
            "a chat, SEQ_2_SEQ_LM turns a text into another. By default inferred from --data.",
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "recipe.yaml"
    ),
    model: Annotated[
        str | None, typer.Option(help="Hub id or directory of the base model.")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            "--data",
            "--train",
            help="Training data: csv, tsv, json, jsonl, parquet, saved dataset or hub id. Columns "
            "and lengths of local data are detected.",
        ),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Train on preferences: dpo on pairs of a chosen and a rejected answer, kto on "
            "answers with votes, reward for a model that scores answers. By default inferred from "
            "--data.",
        ),
    ] = None,
    start_from: Annotated[
        str | None,
        typer.Option(
            "--start-from",
            metavar="ADAPTER",
            help="Train on from this adapter: a run, an adapter directory or a hub id. It gives "
            "task and model.",
        ),
    ] = None,
) -> None:
    """Write a commented recipe for your data, a task or an adapter.

    Raises:
        ConfigError: There is no such task, or it does not fit the data.
        DataError: The data cannot be read or trained on.
        OutputExistsError: The file already exists.
        MissingFileError: Its directory, the data or the adapter does not exist.
    """
    from lorakit.recipes.template import OBJECTIVES, TASKS, recipe_text, task_template

    name = None if task is None else parse_task(task)
    learns = None if objective is None else _parse_objective(objective, name)
    name = name if learns is None else OBJECTIVES[learns]
    if not output.parent.is_dir():
        raise MissingFileError(
            f"Cannot write {output}: got no directory {output.parent}, expected one that exists. "
            "Create it, or choose another --output."
        )
    if start_from is not None:
        name, model = _of_adapter(start_from, name, model)
    found = None if train is None else _recognize_data(train, name, model, learns)
    if found is not None:
        name, learns = cast("TaskName", str(found.task)), cast("ObjectiveName", found.objective)
    if name is None:
        given = "no --task and no --data" if train is None else f"no --task for {train}"
        raise ConfigError(
            f"No task: got {given}, expected one of {', '.join(TASKS)}. Name it with --task, or "
            "give a local file with --data."
        )
    from lorakit.runs.new_recipe import data_keys, positions_of

    positions = positions_of(model)
    keys, about = ({}, None) if found is None else data_keys(found, learns or name, positions)
    defaults = task_template(learns or name).values
    text = recipe_text(
        *(name, str(output), f"runs/{output.stem}", model, train, positions, keys, about),
        start_from,
        learns,
    )
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise OutputExistsError(
            f"Cannot write {output}: got a file that already exists, expected a new name. "
            "Choose another with --output, or move the old file away."
        ) from None
    start = "" if start_from is None else f", starting from {start_from}"
    by = "" if learns is None else f" with the objective {learns}"
    say(f"A recipe for {name}{by} on {model or defaults['model']}{start}.")
    if found is not None:
        show_found(found, keys)
    named = "" if train else f"set data.train (now {defaults['train']}) to your own data"
    purposes = {}
    if named:
        purposes[f"$EDITOR {shell_quote(output)}"] = named
    purposes[f"lorakit train {shell_quote(output)} --dry-run"] = "shows what it would do"
    purposes[f"lorakit train {shell_quote(output)}"] = "trains"
    closing([output], purposes)


def parse_task(given: str) -> TaskName:
    """Return the task that --task names."""
    from lorakit.recipes.template import TASKS

    name = cast("TaskName", given.upper())
    if name not in TASKS:
        raise ConfigError(
            f"Unknown task in --task: got '{given}', expected {', '.join(TASKS)}."
            f"{did_you_mean(given.upper(), TASKS)}"
        )
    return name


def _parse_objective(given: str, task: TaskName | None) -> ObjectiveName:
    """Return the objective that --objective names, which must be one of the task."""
    from lorakit.recipes.template import OBJECTIVES

    name = cast("ObjectiveName", given.lower())
    if name not in OBJECTIVES:
        raise ConfigError(
            f"Unknown objective in --objective: got '{given}', expected {', '.join(OBJECTIVES)}."
            f"{did_you_mean(given.lower(), OBJECTIVES)} ipo and orpo are set in the recipe."
        )
    if task not in (None, OBJECTIVES[name]):
        raise ConfigError(
            f"--objective {name} does not fit --task {task}: expected {OBJECTIVES[name]}. Leave "
            "--task out."
        )
    return name


def _of_adapter(start_from: str, task: TaskName | None, model: str | None) -> tuple[TaskName, str]:
    """Return the task and the base of an adapter to start from.

    Raises:
        MissingFileError: There is no such adapter.
        ConfigError: It is for another task, or records no task or no base that would be needed.
    """
    from lorakit.adapters import Adapter
    from lorakit.inference.loaded import locate_adapter

    adapter = Adapter.load(locate_adapter(start_from)[0])
    recorded = adapter.config.task_type
    if task is not None and recorded not in (None, task):
        raise ConfigError(
            f"Another task in --task: got {task}, expected {recorded} as of the adapter in "
            "--start-from. Leave --task out."
        )
    known, base = task or recorded, model or adapter.base_model
    if known is None or base is None:
        missing = "--task" if known is None else "--model"
        raise ConfigError(
            f"No {missing}: got none, expected one because the adapter {start_from} of "
            f"--start-from does not record it. Name it with {missing}."
        )
    return cast("TaskName", str(known)), base


def _recognize_data(
    train: str, task: TaskName | None, model: str | None, objective: ObjectiveName | None
) -> Recognized | None:
    """Return what the data contains, or None for data that would have to be downloaded."""
    from lorakit.recipes.data_names import is_local

    if not is_local(train):
        return None
    from lorakit.runs.new_recipe import look_into

    say(f"Reading {train} ...")
    return look_into(train, task, model, objective)


def show_found(found: Recognized, keys: Mapping[str, Any]) -> None:
    """Print what the data contains, and how the recipe uses it."""
    columns = ", ".join(f"{key}: {escaped(value)}" for key, value in found.columns.items())
    say(f"  {found.examples:,} examples; {columns}")
    about = "up to" if found.is_counted else "about"
    cut = ""
    if found.tokens > keys["max_length"]:
        cut = f"; longer than {keys['max_length']:,} is cut (data.max_length)"
    say(f"  the longest has {about} {found.tokens:,} tokens{cut}")
    for note in found.notes:
        say(f"  {note}")

"""`lorakit init`: write a commented recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from lorakit.cli.recipe_template import TASKS, TaskName, recipe_text, task_template
from lorakit.cli.views.console import closing, say, shell_quote
from lorakit.errors import (
    ConfigError,
    MissingFileError,
    OutputExistsError,
    did_you_mean,
    escaped,
    first_few,
)

if TYPE_CHECKING:
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
) -> None:
    """Write a commented recipe for a task or a data file.

    Raises:
        ConfigError: There is no such task, or it does not fit the data.
        DataError: The data cannot be read or trained on.
        OutputExistsError: The file already exists.
        MissingFileError: Its directory, or the data, does not exist.
    """
    name = None if task is None else known_task(task)
    if not output.parent.is_dir():
        raise MissingFileError(
            f"Cannot write {output}: got no directory {output.parent}, expected one that exists. "
            "Create it, or choose another --output."
        )
    found = None if train is None else look_into(train, name, model)
    name = name or (found and cast(TaskName, str(found.task)))
    if name is None:
        given = "no --task and no --data" if train is None else f"no --task for {train}"
        raise ConfigError(
            f"No task: got {given}, expected one of {', '.join(TASKS)}. Name it with --task, or "
            "give a local file with --data."
        )
    positions = positions_of(model)
    keys, about = ({}, None) if found is None else data_keys(found, name, positions)
    defaults = task_template(name).values
    text = recipe_text(
        name, str(output), f"runs/{output.stem}", model, train, positions, keys, about
    )
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise OutputExistsError(
            f"Cannot write {output}: got a file that already exists, expected a new name. "
            "Choose another with --output, or move the old file away."
        ) from None
    say(f"A recipe for {name} on {model or defaults['model']}.")
    if found is not None:
        show_found(found, keys)
    named = "" if train else f"set data.train (now {defaults['train']}) to your own data"
    purposes = {}
    if named:
        purposes[f"$EDITOR {shell_quote(output)}"] = named
    purposes[f"lorakit train {shell_quote(output)} --dry-run"] = "shows what it would do"
    purposes[f"lorakit train {shell_quote(output)}"] = "trains"
    closing([output], purposes)


def known_task(given: str) -> TaskName:
    """Return the task that --task names."""
    name = cast(TaskName, given.upper())
    if name not in TASKS:
        raise ConfigError(
            f"Unknown task in --task: got '{given}', expected {', '.join(TASKS)}."
            f"{did_you_mean(given.upper(), TASKS)}"
        )
    return name


def look_into(train: str, task: TaskName | None, model: str | None) -> Recognized | None:
    """Return what the data contains, or None for data that would have to be downloaded."""
    from lorakit.data import is_local

    if not is_local(train):
        return None
    from lorakit.config import TaskType
    from lorakit.models.pretrained import load_local_tokenizer
    from lorakit.training.recognition import recognize

    say(f"Reading {train} ...")
    chosen = None if task is None else TaskType(task)
    return recognize(train, chosen, None if model is None else load_local_tokenizer(model))


def data_keys(
    found: Recognized, task: TaskName, positions: int | None
) -> tuple[dict[str, Any], str]:
    """Return the keys to set under `data:`, and a one-line description of the data."""
    from lorakit.data.text_lengths import rounded_up

    most = positions or max(task_template(task).values["max_length"], DEFAULT_POSITIONS)
    keys: dict[str, Any] = dict(found.columns)
    keys["max_length"] = min(rounded_up(found.tokens), most)
    if found.target_tokens is not None:
        keys["max_target_length"] = min(rounded_up(found.target_tokens), most)
    names = first_few(map(escaped, found.names), 12)
    return keys, f"{found.examples:,} examples with the columns {names}"


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


DEFAULT_POSITIONS = 1024
"""Number of positions assumed for a model whose number is not known."""

POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


def positions_of(model: str | None) -> int | None:
    """Return the number of positions in a model's configuration, or None if it is not local.

    The configuration of a hub model is read from the cache; nothing is downloaded.
    """
    if model is None:
        return None
    file = Path(model) / "config.json"
    if not Path(model).is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(model, "config.json")
        except HFValidationError:
            return None
        if not isinstance(cached, str):
            return None
        file = Path(cached)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = [values.get(key) for key in POSITIONS] if isinstance(values, dict) else []
    limit = next((n for n in known if isinstance(n, int) and n > 0), None)
    if limit is not None and str(values.get("model_type")).endswith("roberta"):
        limit -= 1 + int(values.get("pad_token_id") or 0)  # positions for padding
    return limit

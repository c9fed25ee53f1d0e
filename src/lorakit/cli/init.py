"""`lorakit init`: write a commented recipe."""

import json
from pathlib import Path
from typing import Annotated, cast

import typer

from lorakit.cli.console import closing, quoted, say
from lorakit.cli.recipe_template import TASKS, TaskName, recipe_text
from lorakit.errors import ConfigError, MissingFileError, OutputExistsError, did_you_mean


def init(
    task: Annotated[
        str,
        typer.Option(
            metavar="TASK",
            help="SEQ_CLS labels texts, TOKEN_CLS labels words, CAUSAL_LM goes on with a text or "
            "a chat, SEQ_2_SEQ_LM turns a text into another.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path(
        "recipe.yaml"
    ),
    model: Annotated[
        str | None, typer.Option(help="Hub id or directory of the base model.")
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(help="Training data: csv, json, jsonl, parquet, saved dataset or hub id."),
    ] = None,
) -> None:
    """Write a commented recipe for a task.

    Raises:
        ConfigError: There is no such task.
        OutputExistsError: The file is already there.
        MissingFileError: Its directory is not there.
    """
    name = cast(TaskName, task.upper())
    if name not in TASKS:
        raise ConfigError(
            f"Unknown task in --task: got '{task}', expected {', '.join(TASKS)}."
            f"{did_you_mean(task.upper(), TASKS)}"
        )
    if not output.parent.is_dir():
        raise MissingFileError(
            f"Cannot write {output}: got no directory {output.parent}, expected one that exists. "
            "Make it, or choose another --output."
        )
    text = recipe_text(name, str(output), f"runs/{output.stem}", model, train, positions_of(model))
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise OutputExistsError(
            f"Cannot write {output}: got a file that is already there, expected a new name. "
            "Choose another with --output, or move the old one away."
        ) from None
    say(f"A recipe for {name} on {model or TASKS[name].model}.")
    named = "" if train else f"set data.train (now {TASKS[name].train}) to your own data"
    purposes = {}
    if named:
        purposes[f"$EDITOR {quoted(output)}"] = named
    purposes[f"lorakit train {quoted(output)} --dry-run"] = "shows what it would do"
    purposes[f"lorakit train {quoted(output)}"] = "trains"
    closing([output], purposes)


POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")


def positions_of(model: str | None) -> int | None:
    """Return how many tokens a model's configuration has positions for, where it lies here.

    A hub model's is looked for in the cache; nothing is fetched.
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
        limit -= 1 + int(values.get("pad_token_id") or 0)  # rows that are for padding
    return limit

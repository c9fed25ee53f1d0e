"""Write the recipe of a new run: for a data file, or like that of another run."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lorakit.config import TaskType
from lorakit.errors import ConfigError, DataError, escaped, first_few
from lorakit.files.json_files import read_json_object
from lorakit.recipes import yaml_text
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.template import (
    OBJECTIVES,
    ObjectiveName,
    TaskName,
    recipe_text,
    task_template,
)
from lorakit.recipes.yaml_edits import UNSET, with_values
from lorakit.runs.base_memory import config_file_of

if TYPE_CHECKING:
    from lorakit.training.recognition import Recognized

Kind = TaskName | ObjectiveName
"""What a recipe learns: a task from right answers, or an objective from preferences."""

_NOT_SETTINGS = ("model", "task", "data", "output", "start_from")

RECIPES = "recipes"
"""Folder below that of the studio for the recipes that it writes."""

DEFAULT_POSITIONS = 1024
"""Number of positions assumed for a model whose number is not known."""

POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_NOT_IN_NAMES = re.compile(r"[^a-z0-9]+")


def look_into(
    train: str, task: TaskName | None, model: str | None, objective: ObjectiveName | None = None
) -> Recognized:
    """Return what local data contains; imports the libraries of training.

    Args:
        train: The value of `data.train`, on this machine.
        task: The task; None infers it.
        model: Base whose tokenizer counts the tokens, if it is on this machine.
        objective: What preferences are trained with; None infers whether they are preferences.

    Raises:
        MissingFileError, DataError, ConfigError: As `recognize` raises.
    """
    from lorakit.models.pretrained import load_local_tokenizer
    from lorakit.training.recognition import recognize

    chosen = None if task is None else TaskType(task)
    tokenizer = None if model is None else load_local_tokenizer(model)
    return recognize(train, chosen, tokenizer, objective)


def data_keys(found: Recognized, task: Kind, positions: int | None) -> tuple[dict[str, Any], str]:
    """Return the keys to set under `data:`, and a one-line description of the data."""
    from lorakit.data.text_lengths import round_up_length

    most = positions or max(task_template(task).values["max_length"], DEFAULT_POSITIONS)
    keys: dict[str, Any] = dict(found.columns)
    keys["max_length"] = min(round_up_length(found.tokens), most)
    if found.target_tokens is not None:
        keys["max_target_length"] = min(round_up_length(found.target_tokens), most)
    names = first_few(map(escaped, found.names), 12)
    return keys, f"{found.examples:,} examples with the columns {names}"


@dataclass(frozen=True)
class WrittenRecipe:
    """The result of `write_recipe_for`."""

    text: str
    kind: Kind
    columns: tuple[str, ...]
    """Names of all columns of the data."""
    notes: tuple[str, ...]
    """Notes for the user to check, one sentence each."""
    problem: str | None = None
    """Why no columns of the data fit the kind, whose default names the recipe then has."""


def write_recipe_for(
    train: str,
    kind: Kind | None,
    *,
    model: str,
    path: str,
    output: str,
    start_from: str | None = None,
) -> WrittenRecipe:
    """Look into local data and write a recipe for it, as `lorakit init` does, in the faster dtype.

    Args:
        train: The value of `data.train`.
        kind: The task, or the objective for preferences; None infers it.
        model: The base.
        path: Path of the recipe, for its comments.
        output: The run directory.
        start_from: Adapter to train on from.

    Raises:
        MissingFileError, DataError, ConfigError: As `recognize` raises, except if no columns fit
            the `kind` that is given.
    """
    task, objective = task_and_objective(kind)
    positions = positions_of(model)
    found, problem, keys, about = None, None, None, None
    try:
        found = look_into(train, task, model, objective)
    except (ConfigError, DataError) as error:
        if task is None:
            raise
        from lorakit.training.recognition import column_names

        columns, problem = column_names(train), str(error)
    else:
        columns, objective = found.names, cast("ObjectiveName | None", found.objective)
        task = cast(TaskName, str(found.task))
        keys, about = data_keys(found, objective or task, positions)
    text = recipe_text(
        task, path, output, model, train, positions, keys, about, start_from, objective
    )
    text = with_values(text, {"dtype": "auto"})  # small bases are often slow as they are saved
    notes = () if found is None else found.notes
    return WrittenRecipe(text, objective or task, columns, notes, problem)


def task_and_objective(kind: Kind | None) -> tuple[TaskName | None, ObjectiveName | None]:
    """Return the task of a kind, and its objective if it learns from preferences.

    >>> task_and_objective("SEQ_CLS"), task_and_objective("reward"), task_and_objective(None)
    (('SEQ_CLS', None), ('SEQ_CLS', 'reward'), (None, None))
    """
    if kind in OBJECTIVES:
        objective = cast(ObjectiveName, kind)
        return OBJECTIVES[objective], objective
    return cast("TaskName | None", kind), None


def with_settings(text: str, values: Mapping[str, Any]) -> str:
    """Return a recipe's text with the settings of another, all but its data and names.

    Args:
        text: The text; its comments stay.
        values: The other recipe, of the same kind.
    """
    here = yaml_text.parse_mapping(text, "the recipe")
    changes: dict[str, Any] = {}
    for section in dict.fromkeys((*here, *values)):
        if section in _NOT_SETTINGS:
            continue
        old, new = values.get(section, UNSET), here.get(section, UNSET)
        if not (isinstance(old, dict) and isinstance(new, dict)):
            changes |= {} if old == new else {section: old}
            continue
        for key in dict.fromkeys((*new, *old)):
            if old.get(key, UNSET) != new.get(key, UNSET):
                changes[f"{section}.{key}"] = old.get(key, UNSET)
    return with_values(text, changes)


def recipe_like(recipe: Recipe, output: str) -> str:
    """Return the text of a recipe like that of another run, without keys at their defaults."""
    values = recipe.model_copy(update={"output": output}).model_dump(
        mode="json", exclude_defaults=True
    )
    if recipe.start_from is not None:  # the defaults of its section are those of the adapter
        values["lora"] = recipe.model_dump(mode="json")["lora"]
    order = ("model", "task", "output")
    first = {key: values[key] for key in order if key in values}
    return yaml_text.to_text({**first, **values})


def free_name(wanted: str, taken: Path) -> str:
    """Return a name for a new run or file in a folder: letters without marks, digits and dashes.

    Args:
        wanted: Text to make the name of, such as "Ticket reviews (2)".
        taken: The folder; names in it are not returned, with or without an ending.
    """
    letters = unicodedata.normalize("NFKD", wanted.casefold())
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    name = _NOT_IN_NAMES.sub("-", plain).strip("-")[:60] or "run"
    there = {entry.name for entry in taken.iterdir()} if taken.is_dir() else set[str]()
    there |= {Path(entry).stem for entry in there}
    number, free = 1, name
    while free in there:
        number += 1
        free = f"{name}-{number}"
    return free


def free_output(root: Path, wanted: str) -> str:
    """Return a new run directory, relative to the folder of the studio.

    Args:
        root: The folder of the studio.
        wanted: Text to make the name of, such as the name of a data file or another run.
    """
    folder = "" if root.name == "runs" else "runs/"
    taken = root / folder
    return f"{folder}{free_name(Path(wanted).stem, taken)}"


def recipe_path(root: Path, output: str) -> str:
    """Return a new file for the recipe of a run, relative to the folder of the studio."""
    return f"{RECIPES}/{free_name(Path(output).name, root / RECIPES)}.yaml"


def positions_of(model: str | None) -> int | None:
    """Return the number of positions in a model's configuration, or None if it is not local.

    The configuration of a hub model is read from the cache; nothing is downloaded.
    """
    file = None if model is None else config_file_of(model)
    if file is None:
        return None
    try:
        return positions_in(read_json_object(file))
    except ValueError:
        return None


def positions_in(config: Mapping[str, Any]) -> int | None:
    """Return the number of positions that a model's configuration names, or None."""
    known = [config.get(key) for key in POSITIONS]
    limit = next((n for n in known if isinstance(n, int) and n > 0), None)
    if limit is not None and str(config.get("model_type")).endswith("roberta"):
        limit -= 1 + int(config.get("pad_token_id") or 0)  # positions for padding
    return limit

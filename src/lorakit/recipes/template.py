"""The commented recipe `lorakit init` writes, from the YAML files in `templates/`.

`every_task.yaml` is the recipe; the file of a task holds the values and lines that differ.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import groupby
from string import Template
from textwrap import indent
from typing import Any, Literal, get_args

import yaml

from lorakit.recipes.yaml_text import to_one_line

TaskName = Literal["SEQ_CLS", "TOKEN_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)

ObjectiveName = Literal["dpo", "kto", "reward"]
OBJECTIVES: dict[ObjectiveName, TaskName] = {
    "dpo": "CAUSAL_LM",
    "kto": "CAUSAL_LM",
    "reward": "SEQ_CLS",
}
"""Objectives with a template, and the task of each."""

_OBJECTIVE_LINE = (
    "objective: null  # what preferences are trained with (docs/how-to/preferences.md)\n"
)

_KEY_LINE = re.compile(r"(?P<indent> *)(?:# )?(?P<key>\w+): \S.*?  # (?P<comment>.*)")
_LORA_SECTION = re.compile(r"^lora:\n(?:  .*\n)+", re.MULTILINE)
_INDENT = "  "


@dataclass(frozen=True)
class TaskTemplate:
    """What differs between the tasks.

    Attributes:
        values: Values of keys that every task has.
        examples: How the training data looks, for a comment.
        data: Lines under `data:` that name columns.
        training: Further lines under `training:`.
    """

    values: dict[str, Any]
    examples: str
    data: str
    training: str = ""


def task_template(task: TaskName | ObjectiveName) -> TaskTemplate:
    """Read the template of a task or of an objective."""
    return TaskTemplate(**yaml.safe_load(_read(f"{task.lower()}.yaml")))


def recipe_text(
    task: TaskName,
    path: str,
    run: str,
    model: str | None = None,
    train: str | None = None,
    positions: int | None = None,
    data_keys: Mapping[str, Any] | None = None,
    about: str | None = None,
    start_from: str | None = None,
    objective: ObjectiveName | None = None,
) -> str:
    """Write a recipe.

    Args:
        task: Task to train for.
        path: Path of the recipe, for the comments on top.
        run: Run directory.
        model: Base model; None takes a small one that fits.
        train: Training data; None takes an example name.
        positions: Largest number of tokens that the model takes, where that is known.
        data_keys: Values of keys under `data:`; other keys keep their example or default.
        start_from: Adapter to train on from; the `lora:` section is then left to it.
        about: What is known of the data, for a comment of one line.
        objective: What preferences are trained with, of this task; None trains on right answers.

    Returns:
        YAML which is a valid recipe, also with every commented key set.
    """
    template = task_template(objective or task)
    values = {**template.values, "task": task, "output": run}
    values |= {key: value for key, value in (("model", model), ("train", train)) if value}
    values["max_length"] = min(values["max_length"], positions or values["max_length"])
    values |= data_keys or {}
    text = _read("every_task.yaml")
    if objective is not None:
        text = text.replace("output: null", f"{_OBJECTIVE_LINE}output: null", 1)
    if start_from is not None:
        second = yaml.safe_load(_read("second_round.yaml"))
        values |= {"start_from": start_from, **second["values"]}
        text = _LORA_SECTION.sub(lambda _: second["lora"], text)
    for section in ("data", "training"):
        text = text.replace(f"{_INDENT}# ${section}\n", indent(getattr(template, section), _INDENT))
    comments = {"path": path, "examples": about or template.examples}
    lines = [_fill_line(line, values, comments) for line in text.splitlines()]
    return "".join(f"{line}\n" for line in _align_comments(lines))


def comments_by_key(task: TaskName) -> dict[str, str]:
    """Return the comment behind each key of a task's recipe, by dotted key."""
    found: dict[str, str] = {}
    section = ""
    for line in recipe_text(task, "recipe.yaml", "runs/recipe").splitlines():
        if heading := re.match(r"(\w+):(?: *#.*)?$", line):
            section = f"{heading[1]}."
        elif key_line := _KEY_LINE.fullmatch(line):
            prefix = section if key_line["indent"] else ""
            found[prefix + key_line["key"]] = key_line["comment"]
    return found


def _fill_line(
    line: str, values: Mapping[str, Any], comments: Mapping[str, str]
) -> tuple[str, str | None]:
    """Return a line with what is inserted, and the comment behind its key if it has one."""
    found = _KEY_LINE.fullmatch(line)
    if found is None:
        return Template(line).substitute(comments), None
    key, comment = found["key"], found["comment"]
    if key in values:
        return f"{found['indent']}{key}: {to_one_line(values[key])}", comment
    return line.removesuffix(f"  # {comment}"), comment


def _align_comments(lines: list[tuple[str, str | None]]) -> Iterator[str]:
    """Yield the lines, the comments of adjacent keys in one column."""
    for has_comment, block in groupby(lines, key=lambda line: line[1] is not None):
        settings, comments = zip(*block, strict=True)
        width = max(map(len, settings))
        for setting, comment in zip(settings, comments, strict=True):
            yield f"{setting:<{width}}  # {comment}" if has_comment else setting


def _read(name: str) -> str:
    return (files("lorakit.recipes") / "templates" / name).read_text(encoding="utf-8")

"""A recipe as a text and as the fields of a form, which edit the same thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, cast, get_args

from lorakit.config.initialization_names import INITIALIZATIONS
from lorakit.errors import ConfigError, Problem
from lorakit.recipes import yaml_text
from lorakit.recipes.objective_section import ObjectiveType
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.template import TASKS, TaskName, comments_by_key
from lorakit.recipes.yaml_edits import UNSET, key_lines, with_values

Kind = Literal["integer", "number", "words", "choice"]


@dataclass(frozen=True)
class FormField:
    """One field of the form."""

    key: str
    kind: Kind
    default: Any = None
    """What applies if the key is not set; shown, never written."""
    choices: Mapping[str, Any] = field(default_factory=dict)
    """Values to choose from, by what they are called; `UNSET` removes the key."""
    removes: str = ""
    """Key that `UNSET` removes, if it is not `key`: the section of a key that needs others."""


FIELDS: tuple[FormField, ...] = (
    FormField("lora.r", "integer", 8),
    FormField("lora.lora_alpha", "number", 8),
    FormField("lora.lora_dropout", "number", 0),
    FormField("lora.target_modules", "words", "all-linear"),
    FormField(
        "lora.init_lora_weights",
        "choice",
        choices={"true (default)": UNSET} | {name: name for name in INITIALIZATIONS},
    ),
    FormField(
        "quantization.bits",
        "choice",
        choices={"as saved": UNSET, "8 bits": 8, "4 bits (QLoRA)": 4},
        removes="quantization",
    ),
    FormField("data.max_length", "integer", "the model's limit, at most 1024"),
    FormField("training.num_train_epochs", "number", 3),
    FormField("training.learning_rate", "number", 2e-4),
    FormField("training.per_device_train_batch_size", "integer", 8),
    FormField("training.gradient_accumulation_steps", "integer", 1),
    FormField("training.warmup_steps", "number", 0),
)
"""The fields that a newcomer changes; the text beside them has all keys."""

OBJECTIVE_FIELDS: tuple[FormField, ...] = (
    FormField("objective.type", "choice", choices={name: name for name in get_args(ObjectiveType)}),
    FormField("objective.beta", "number", 0.1),
)
"""Fields of a recipe that trains on preferences."""

_HELP = {
    "objective.type": "what the preferences are trained with",
    "objective.beta": "how close to the reference it stays: larger is closer (default 0.1)",
}
"""Help for keys behind which `lorakit init` writes no comment."""


@dataclass(frozen=True)
class CheckedText:
    """The result of `check_text`."""

    values: Mapping[str, Any]
    """What the text sets, by key and section; empty if it is not YAML."""
    recipe: Recipe | None
    """The recipe, if it has no problem."""
    problems: tuple[Problem, ...]
    """Each with the sentence that the command line prints, and its line where that is known."""
    is_yaml: bool

    def value(self, key: str) -> Any:
        """Return the value of a dotted key, or `UNSET`."""
        inner: Any = self.values
        for part in key.split("."):
            if not isinstance(inner, Mapping) or part not in inner:
                return UNSET
            inner = cast(Mapping[str, Any], inner)[part]
        return inner

    def problems_at(self, key: str) -> tuple[Problem, ...]:
        """Return the problems of a key, and of everything in it."""
        return tuple(p for p in self.problems if f"{p.key}.".startswith(f"{key}."))


def check_text(text: str, where: str) -> CheckedText:
    """Check a recipe's text as `lorakit train` checks its file.

    Args:
        text: The text.
        where: Name of the file, for messages.
    """
    try:
        known = yaml_text.parse_mapping(text, where)
    except ConfigError as error:
        problems = error.problems or (Problem(str(error), line=1),)
        return CheckedText({}, None, problems, is_yaml=False)
    try:
        return CheckedText(known, Recipe.check(known, where), (), is_yaml=True)
    except ConfigError as error:
        found = error.problems or (Problem(str(error)),)
        lines = key_lines(text)
        problems = tuple(Problem(p.sentence, p.key, _line(p.key, lines)) for p in found)
        return CheckedText(known, None, problems, is_yaml=True)


def list_fields(checked: CheckedText) -> tuple[FormField, ...]:
    """Return the fields to show for a recipe."""
    return FIELDS if checked.value("objective") in (UNSET, None) else OBJECTIVE_FIELDS + FIELDS


def _line(key: str, lines: Mapping[str, int]) -> int:
    """Return the line of a key, of the nearest section around it, or the first."""
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return lines.get(key, 1)


def with_field(text: str, field: FormField, value: Any) -> str:
    """Return a recipe's text in which a field has another value.

    Args:
        text: The text, which must be YAML.
        field: The field.
        value: The value as a recipe holds it; `UNSET` lets the default apply.
    """
    key = field.removes if value is UNSET and field.removes else field.key
    return with_values(text, {key: value})


def parse_field(field: FormField, typed: str | None) -> Any:
    """Return the value of a field as typed, which is YAML; words may be separated by commas.

    What is not a number stays a text, whose problem `check_text` reports.

    >>> r, modules = FIELDS[0], FIELDS[3]
    >>> parse_field(r, "16"), parse_field(r, "many"), parse_field(r, " ")
    (16, 'many', UNSET)
    >>> parse_field(modules, "q_proj, v_proj"), parse_field(modules, "all-linear")
    (['q_proj', 'v_proj'], 'all-linear')
    """
    typed = (typed or "").strip()
    if not typed:
        return UNSET
    if field.kind == "words":
        names = [name.strip() for name in typed.strip("[]").split(",") if name.strip()]
        is_list = "," in typed or typed.startswith("[")
        return names if is_list else typed
    try:
        value = yaml_text.parse(typed, field.key)
    except ConfigError:
        return typed
    return value if isinstance(value, (int, float)) else typed


def field_text(field: FormField, value: Any) -> str:
    """Return a value as the field shows it; the inverse of `parse_field`."""
    if value is UNSET or value is None:
        return ""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return value if isinstance(value, str) else yaml_text.to_one_line(value)


@cache
def help_of(key: str, task: str) -> str:
    """Return one line of help for a key: the comment of `lorakit init` behind it."""
    if key in _HELP:
        return _HELP[key]
    known = cast(TaskName, task if task in TASKS else TASKS[0])
    return comments_by_key(known).get(key) or comments_by_key(known).get(key.partition(".")[0], "")

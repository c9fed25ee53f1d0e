"""The recipe reference of the site: every key with type, default and meaning, from the models."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from lorakit.config import LoraConfig, QuantizationConfig, StrictConfig, TaskType
from lorakit.recipes.evaluation_section import EvaluationConfig
from lorakit.recipes.frozen_part_section import FrozenPartConfig
from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.recipes.recipe import DataConfig, Recipe
from lorakit.recipes.search_sections import (
    AshaConfig,
    Distribution,
    SearchConfig,
    StudyConfig,
)
from lorakit.recipes.training_section import OWNED_KEYS, training_section

PLACE = "reference/recipe.md"
"""Path of the page on the site; the build generates it, so it is not in docs/."""

SECTIONS: dict[str, type[StrictConfig]] = {
    "Top level": Recipe,
    "data": DataConfig,
    "objective": ObjectiveConfig,
    "lora": LoraConfig,
    "quantization": QuantizationConfig,
    "evaluation": EvaluationConfig,
    "frozen_part": FrozenPartConfig,
    "search": SearchConfig,
    "search.asha": AshaConfig,
    "search.space": Distribution,
    "study": StudyConfig,
}
"""The model of each section, by its heading: the section's key."""

_PLAIN = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
    "array": "list",
}

_BOUNDS = (
    (("minimum", "ge"), "≥"),
    (("exclusiveMinimum", "gt"), ">"),
    (("maximum", "le"), "≤"),
    (("exclusiveMaximum", "lt"), "<"),
)

_LARGEST_INTEGER = 2**31 - 1
"""Bounds that only keep integers in 32 bits are left out."""

_MOST_CHOICES = 12

_IN_YAML = {"None": "null", "True": "true", "False": "false"}
_PYTHON_VALUE = re.compile(rf"\b(?:{'|'.join(_IN_YAML)})\b")

_HEAD = """# Recipe reference

A recipe is a YAML file with the keys below. `lorakit init` writes one with comments \
([getting started](../getting-started.md)), and any key can be changed on the command line: \
`lorakit train recipe.yaml lora.r=16`. A key that is not listed here is an error that names the \
nearest right one.

This page is generated from the classes that check a recipe."""

_TRAINING = """## training

The fields of transformers' \
[`TrainingArguments`](https://huggingface.co/docs/transformers/main_classes/trainer); SEQ_2_SEQ_LM \
takes those of `Seq2SeqTrainingArguments` too, and CAUSAL_LM those of TRL's \
[`SFTConfig`](https://huggingface.co/docs/trl/sft_trainer). Their documentation explains the keys. \
A key that is left out has the default of that class, unless `lorakit train --dry-run` lists \
another.

lorakit adds these keys:

| key | type | meaning |
|---|---|---|
| `early_stopping_patience` | integer, ≥ 1 | Evaluations without progress before training stops. |
| `early_stopping_threshold` | number, ≥ 0 | How much better an evaluation must be to count as \
progress. |
| `lora_plus_ratio` | number, > 0 | LoRA+: factor on the learning rate of lora_B. |
| `optim: memory_mapped_adamw` | | AdamW with its state in a file on disk. |

These keys are refused, because another key or an option of the command line sets them:

| key | instead |
|---|---|
{refused}

All other keys, with the type and the bounds that are checked:

| key | type | tasks |
|---|---|---|
{keys}"""


def reference_text() -> str:
    """Return the page as Markdown."""
    parts = [_HEAD]
    for title, model in SECTIONS.items():
        parts.append(_section(title, model))
        if title == "quantization":
            parts.append(_training_text())
    return "\n\n".join(parts) + "\n"


def field_meanings(model: type[StrictConfig]) -> dict[str, str]:
    """Return the docstring below each field of a model, inherited fields included, by name."""
    meanings: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if issubclass(base, StrictConfig) and base is not StrictConfig:
            meanings |= dict(_meanings_in_source(base))
    return {name: meanings[name] for name in model.model_fields if name in meanings}


def _meanings_in_source(model: type[StrictConfig]) -> Iterator[tuple[str, str]]:
    node = ast.parse(textwrap.dedent(inspect.getsource(model))).body[0]
    body: list[ast.stmt] = getattr(node, "body", [])
    for field, after in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
            and isinstance(after.value.value, str)
        ):
            yield field.target.id, inspect.cleandoc(after.value.value)


def _section(title: str, model: type[StrictConfig]) -> str:
    schema = model.model_json_schema()
    meanings = field_meanings(model)
    heading = f"## {title}" if title == "Top level" else f"## {title} {{#{title}}}"
    lines = [heading, "", inspect.cleandoc(model.__doc__ or ""), ""]
    lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        kind = type_text(field, schema.get("$defs", {}))
        default = "required" if name in schema.get("required", ()) else _default(field)
        meaning = _PYTHON_VALUE.sub(lambda value: _IN_YAML[value[0]], meanings.get(name, ""))
        lines.append(f"| `{name}` | {kind} | {default} | {_cell(meaning)} |")
    return "\n".join(lines)


def _training_text() -> str:
    of_tasks: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    for task in TaskType:
        schema = training_section(task).model_json_schema()
        for name, field in schema["properties"].items():
            of_tasks.setdefault(name, []).append(task.value)
            kinds[name] = type_text(field, schema.get("$defs", {}))
    refused = [f"| `{key}` | {_cell(reason)} |" for key, reason in OWNED_KEYS.items()]
    keys = [
        f"| `{name}` | {kinds[name]} | {_tasks(of_tasks[name])} |"
        for name in sorted(of_tasks)
        if name not in OWNED_KEYS
    ]
    return _TRAINING.format(refused="\n".join(refused), keys="\n".join(keys))


def _tasks(names: list[str]) -> str:
    return "all" if len(names) == len(TaskType) else ", ".join(names)


def type_text(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return a JSON schema as a phrase.

    >>> type_text({"type": "integer", "minimum": 1}, {})
    'integer, ≥ 1'
    >>> type_text({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}, {})
    'list of text, or null'
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        section = {model.__name__: title for title, model in SECTIONS.items()}.get(name)
        return f"[{section}](#{section})" if section else type_text(definitions[name], definitions)
    if "anyOf" in schema:
        kinds = list(dict.fromkeys(type_text(one, definitions) for one in schema["anyOf"]))
        return ", or ".join(kinds)
    if "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        listed = [f"`{json.dumps(choice).strip(chr(34))}`" for choice in choices[:_MOST_CHOICES]]
        more = len(choices) - len(listed)
        return " ".join(listed) + (f" and {more} more" if more else "")
    kind = schema.get("type")
    if kind == "array" and "prefixItems" in schema:
        inner = [type_text(item, definitions) for item in schema["prefixItems"]]
        return f"list of {len(inner)}: {inner[0]}"
    if kind == "array" and schema.get("items"):
        return f"list of {type_text(schema['items'], definitions)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {type_text(schema['additionalProperties'], definitions)}"
    return ", ".join([_PLAIN.get(str(kind), "any value"), *_bounds(schema)])


def _bounds(schema: Mapping[str, Any]) -> Iterator[str]:
    for names, sign in _BOUNDS:
        for name in names:
            if name in schema and schema[name] != _LARGEST_INTEGER:
                yield f"{sign} {schema[name]:,}"


def _default(field: Mapping[str, Any]) -> str:
    default = field.get("default")
    if isinstance(default, dict) and default:
        return "its defaults"
    return f"`{json.dumps(default)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")

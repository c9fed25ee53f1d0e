"""The fields of transformers' and TRL's training arguments, read from their source.

Importing those classes takes seconds, and a mistyped key should be told at once: here the classes
are parsed, and nothing of theirs runs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from enum import Enum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Optional, Union

from lorakit.config import TaskType

_TRANSFORMERS = (("transformers", "training_args.py", "TrainingArguments"),)
_CLASSES = {
    TaskType.SEQ_CLS: _TRANSFORMERS,
    TaskType.TOKEN_CLS: _TRANSFORMERS,
    TaskType.SEQ_2_SEQ_LM: (
        *_TRANSFORMERS,
        ("transformers", "training_args_seq2seq.py", "Seq2SeqTrainingArguments"),
    ),
    TaskType.CAUSAL_LM: (
        *_TRANSFORMERS,
        ("trl", "trainer/base_config.py", "_BaseConfig"),
        ("trl", "trainer/sft_config.py", "SFTConfig"),
    ),
}
"""The arguments class of each task after the classes it derives from."""

_ENUMERATIONS = ("trainer_utils.py", "training_args.py", "debug_utils.py")
"""Files of transformers with the enumerations that annotations name."""

_KNOWN = {
    **{kind.__name__: kind for kind in (bool, int, float, str, dict, list, tuple)},
    **{"Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union},
}


class ObjectOfCode:
    """Stands for whatever an annotation names that YAML cannot say."""


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        return ObjectOfCode


def argument_hints(task_type: TaskType) -> dict[str, Any]:
    """Return the type of every training argument of a task by its name.

    What is neither a builtin nor an enumeration of transformers is `ObjectOfCode`.
    """
    names = _Names({**_KNOWN, **_enumerations()})
    hints: dict[str, Any] = {}
    for package, file, class_name in _CLASSES[task_type]:
        for node in _fields(_class_node(package, file, class_name)):
            code = compile(ast.Expression(node.annotation), file, "eval")
            hints[node.target.id] = eval(code, {}, names)  # type: ignore[union-attr]
    return hints


def optimizer_names() -> tuple[str, ...]:
    """Return the values of transformers' `OptimizerNames`."""
    return tuple(member.value for member in _enumerations()["OptimizerNames"])


def _fields(node: ast.ClassDef) -> Iterator[ast.AnnAssign]:
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            yield part


def _class_node(package: str, file: str, class_name: str) -> ast.ClassDef:
    tree = _parsed(package, file)
    nodes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    return next(node for node in nodes if node.name == class_name)


@cache
def _enumerations() -> dict[str, type[Enum]]:
    found = {}
    for file in _ENUMERATIONS:
        for node in _parsed("transformers", file).body:
            if isinstance(node, ast.ClassDef) and "ExplicitEnum" in map(ast.unparse, node.bases):
                found[node.name] = Enum(node.name, dict(_members(node)), type=str)
    return found


def _members(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for part in node.body:
        if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name):
            yield part.targets[0].id, ast.literal_eval(part.value)


@cache
def _parsed(package: str, file: str) -> ast.Module:
    spec = find_spec(package)  # of a top-level package: it is found and not imported
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise ModuleNotFoundError(f"No package {package}, which lorakit needs.", name=package)
    return ast.parse((Path(places[0]) / file).read_text(encoding="utf-8"))

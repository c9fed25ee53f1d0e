"""The fields of transformers' and TRL's training arguments, read from their source.

Importing those classes takes seconds, and a mistyped key should be reported immediately: here their
source is parsed and not run.
"""

from __future__ import annotations

import ast
import gc
from collections.abc import Iterator
from enum import Enum
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
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
"""Each task's arguments class, after its base classes."""

_ENUMERATIONS = ("trainer_utils.py", "training_args.py", "debug_utils.py")
"""Files of transformers that define the enumerations in the annotations."""

_KNOWN = {
    **{kind.__name__: kind for kind in (bool, int, float, str, dict, list, tuple)},
    **{"Any": Any, "Literal": Literal, "Optional": Optional, "Union": Union},
}

_PARSING = Lock()


class NotInYaml:
    """Placeholder for types in annotations whose values YAML cannot express."""


class _Names(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        return NotInYaml


def argument_hints(task_type: TaskType) -> dict[str, Any]:
    """Return the type of every training argument of a task by its name.

    Types other than builtins and enumerations of transformers are `NotInYaml`.
    """
    names = _Names({**_KNOWN, **_enumerations()})
    hints: dict[str, Any] = {}
    for package, file, class_name in _CLASSES[task_type]:
        for name, annotation in _fields(_class_node(package, file, class_name)):
            hints[name] = eval(compile(ast.Expression(annotation), file, "eval"), {}, names)
    return hints


def optimizer_names() -> tuple[str, ...]:
    """Return the values of transformers' `OptimizerNames`."""
    return tuple(member.value for member in _enumerations()["OptimizerNames"])


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr]]:
    """Yield the name and annotation of each field of a class."""
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id, statement.annotation


def _class_node(package: str, file: str, class_name: str) -> ast.ClassDef:
    tree = _parse_source(package, file)
    nodes = (node for node in tree.body if isinstance(node, ast.ClassDef))
    return next(node for node in nodes if node.name == class_name)


@cache
def _enumerations() -> dict[str, type[Enum]]:
    found: dict[str, type[Enum]] = {}
    for file in _ENUMERATIONS:
        for node in _parse_source("transformers", file).body:
            if isinstance(node, ast.ClassDef) and "ExplicitEnum" in map(ast.unparse, node.bases):
                made: Any = Enum(node.name, dict(_members(node)), type=str)
                found[node.name] = made
    return found


def _members(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            yield statement.targets[0].id, ast.literal_eval(statement.value)


@cache
def _parse_source(package: str, file: str) -> ast.Module:
    spec = find_spec(package)  # does not import a top-level package
    places = spec.submodule_search_locations if spec is not None else None
    if not places:
        raise ModuleNotFoundError(f"No package {package}, which lorakit needs.", name=package)
    return _parse((Path(places[0]) / file).read_text(encoding="utf-8"))


def _parse(source: str) -> ast.Module:
    """Parse Python without letting another thread run.

    CPython 3.11 counts the depth of all threads' syntax trees together: two that are built at once
    fail with a SystemError. Only a garbage collection lets another thread run meanwhile.
    """
    with _PARSING:
        was_enabled = gc.isenabled()
        gc.disable()
        try:
            return ast.parse(source)
        finally:
            if was_enabled:
                gc.enable()

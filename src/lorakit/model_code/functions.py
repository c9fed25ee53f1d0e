"""The functions that a model's classes define, and whether they name a weight."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Collection
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

_NOT_CALLED = {"__init__", "forward", "extra_repr", "reset_parameters", "_init_weights"}


@cache
def methods_name_weights(kind: type[nn.Module]) -> bool:
    """Return whether a method that others may call instead of forward names a weight."""
    return any(_names_a_weight(function) for function in _functions(kind, _NOT_CALLED))


@cache
def names_weights(kind: type[nn.Module]) -> bool:
    """Return whether a class, or a function that its code names, may read a weight."""
    functions = _functions(kind, {"__init__"})
    named = [
        helper
        for function in functions
        for name in _names(function.__code__)
        if (helper := function_of(function.__globals__.get(name))) is not None
        and not is_from(helper, "torch")
    ]
    return any(_names_a_weight(function) for function in (*functions, *named))


def _functions(kind: type[nn.Module], left_out: Collection[str]) -> list[FunctionType]:
    """Return the functions that the model's code defines in a class and its bases."""
    return [
        function
        for base in kind.__mro__
        if not is_from(base, "torch", "builtins")
        for name, value in vars(base).items()
        if name not in left_out and (function := function_of(value)) is not None
    ]


def _names_a_weight(function: FunctionType) -> bool:
    return "weight" in _names(function.__code__)


def _names(code: CodeType) -> set[str]:
    inner = [one for one in code.co_consts if isinstance(one, CodeType)]
    strings = {one for one in code.co_consts if isinstance(one, str)}
    return {*code.co_names, *strings}.union(*(_names(one) for one in inner))


def is_from(thing: Any, *packages: str) -> bool:
    """Return whether a class or function is of one of these packages."""
    return (thing.__module__ or "").split(".")[0] in packages


def model_classes(module: nn.Module) -> list[type[Any]]:
    """Return the classes of a module without those that lorakit makes, which compute the same."""
    return [kind for kind in type(module).__mro__ if not is_from(kind, "lorakit")]


def function_of(value: Any) -> FunctionType | None:
    """Return the Python function behind a value, without its decorators."""
    value = getattr(value, "__func__", value)  # class and static methods
    unwrapped = inspect.unwrap(value) if callable(value) and not isinstance(value, type) else None
    return unwrapped if isinstance(unwrapped, FunctionType) else None


@cache
def definition_of(function: FunctionType) -> ast.FunctionDef | None:
    """Return the parsed source of a function; None for one whose source is not a definition."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # made at run time, or part of another expression
        return None
    first = tree.body[0]
    return first if isinstance(first, ast.FunctionDef) else None

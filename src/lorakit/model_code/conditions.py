"""Evaluating conditions in a model's code, as far as they depend only on its modules."""

from __future__ import annotations

import ast
import builtins
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_COMPARES: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
}
UNKNOWN = object()
"""Stands for a value that depends on more than modules."""


@dataclass(frozen=True)
class Conditions:
    """The names that are known at one place of some code.

    Attributes:
        modules: The modules of the model, by path.
        names: Paths of the modules that a name may stand for.
        locals: Other names that the function sets.
        globals: The globals of the function.
    """

    modules: Mapping[str, nn.Module]
    names: Mapping[str, frozenset[str]]
    locals: Collection[str]
    globals: Mapping[str, Any]

    def evaluate(self, node: ast.expr) -> Any:
        """Return the value of an expression that depends only on modules, or `UNKNOWN`.

        A model that is now in evaluation will be trained, so the mode is unknown.
        """
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                paths = self.names.get(node.id, frozenset())
                if len(paths) == 1:
                    return self.modules[next(iter(paths))]
                if node.id in self.locals:
                    return UNKNOWN
                return self.globals.get(node.id, vars(builtins).get(node.id, UNKNOWN))
            case ast.Attribute():
                owner = self.evaluate(node.value)
                # A property of a module may compute anything.
                is_property = isinstance(getattr(type(owner), node.attr, None), property)
                if isinstance(owner, nn.Module) and (is_property or node.attr == "training"):
                    return UNKNOWN
                return UNKNOWN if owner is UNKNOWN else getattr(owner, node.attr, UNKNOWN)
            case ast.UnaryOp(op=ast.Not()):
                value = self.evaluate(node.operand)
                return UNKNOWN if not _is_plain(value) else not value
            case ast.BoolOp():
                return self.evaluate_several(node)
            case ast.Compare(ops=[kind], comparators=[second]):
                return _compare(self.evaluate(node.left), kind, self.evaluate(second))
            case ast.Call(func=ast.Name(id="hasattr" | "isinstance" as name), args=[one, other]):
                owner, asked = self.evaluate(one), self.evaluate(other)
                if owner is UNKNOWN or asked is UNKNOWN:
                    return UNKNOWN
                return hasattr(owner, asked) if name == "hasattr" else isinstance(owner, asked)
        return UNKNOWN

    def evaluate_several(self, node: ast.BoolOp) -> Any:
        """Return the value of `and` or `or`, if the known operands decide it."""
        decides = isinstance(node.op, ast.Or)
        values = [self.evaluate(one) for one in node.values]
        if any(_is_plain(value) and bool(value) == decides for value in values):
            return decides
        return not decides if all(_is_plain(value) for value in values) else UNKNOWN


def _is_plain(value: Any) -> bool:
    """Whether a value is known and cheap to test; a tensor may have to be waited for."""
    return value is None or isinstance(value, (bool, int, float, str, list, tuple, dict, set))


def _compare(one: Any, kind: ast.cmpop, other: Any) -> Any:
    if one is UNKNOWN or other is UNKNOWN:
        return UNKNOWN
    is_identity = isinstance(kind, (ast.Is, ast.IsNot))
    if not is_identity and (isinstance(one, Tensor) or isinstance(other, Tensor)):
        return UNKNOWN
    try:
        return _COMPARES[type(kind)](one, other)
    except TypeError:  # the values cannot be compared, so this code does not run
        return UNKNOWN

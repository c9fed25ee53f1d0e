"""Which weights of layers a model's code reads, and which layers it calls, found in its source.

A forward pass on invented inputs would show this too, but few models declare their inputs, it would
run unknown code, and one pass does not call what another does: a branch for training, for images,
for the next token. The source contains them all. It is followed from each module's forward through
its methods, through functions that modules are passed to, and through lists of modules. Conditions
that depend only on the module, such as `hasattr(self.config, "_is_quantized")` or the
device of a weight, are evaluated on the module, so a branch that this model does not take does not
count; both branches of any other condition are followed.

Only functions whose compiled code names a `weight` are parsed, so most models, which have no such
code, cost almost nothing.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch import nn

from lorakit.model_code.conditions import UNKNOWN, Conditions
from lorakit.model_code.functions import (
    definition_of,
    function_of,
    is_from,
    methods_name_weights,
    model_classes,
    names_weights,
)

_DESCRIBES = {
    "dtype", "device", "shape", "size", "dim", "ndim", "numel", "data", "requires_grad",
    "is_meta", "element_size", "is_floating_point", "data_ptr", "stride",
}  # fmt: skip
"""Attributes and methods of a weight that do not compute with it."""

_ASKS = {"isinstance", "hasattr", "type", "id", "len", "print", "repr"}
_ITERATES = {"enumerate", "zip", "list", "tuple", "reversed"}
_NOTHING: frozenset[str] = frozenset()


@dataclass
class WeightReads:
    """Layers whose weight is read, and layers that are called, by module path.

    Attributes:
        readers: The class whose code reads the weight of a layer.
        readers_of_a_part: The same, if it reads only a part of the weight.
        used: Layers that are called, or passed to code that may call them.
        readers_in_a_branch: The class whose code reads the weight of a layer in one branch of a
            condition and calls the layer in the other.
    """

    readers: dict[str, str] = field(default_factory=dict)
    readers_of_a_part: dict[str, str] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    readers_in_a_branch: dict[str, str] = field(default_factory=dict)

    def add(self, branches: Sequence[WeightReads]) -> None:
        """Add what was found in the branches of an unknown condition."""
        for one in branches:
            elsewhere = set().union(*(other.used for other in branches if other is not one))
            for path, reader in one.readers.items():
                self.readers.setdefault(path, reader)
                if path in elsewhere and path not in one.used:
                    self.readers_in_a_branch.setdefault(path, reader)
            self.readers_of_a_part = one.readers_of_a_part | self.readers_of_a_part
            self.readers_in_a_branch = one.readers_in_a_branch | self.readers_in_a_branch
            self.used |= one.used


def weight_reads(modules: Mapping[str, nn.Module]) -> WeightReads:
    """Find code that reads weights of layers, from the forward of every module.

    Args:
        modules: The modules of the base, by path.
    """
    found = WeightReads()
    seen: set[tuple[FunctionType, str]] = set()
    for path, module in modules.items():
        inside = any(methods_name_weights(model_classes(m)[0]) for m in module.children())
        if inside or names_weights(model_classes(module)[0]):
            _Reader(modules, found, path, seen).run_method(path, "forward", [], {})
    return found


class _Reader:
    """Follows code, and tracks which modules each name may stand for."""

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        found: WeightReads,
        origin: str,
        seen: set[tuple[FunctionType, str]],
    ):
        self.modules, self.found, self.origin, self.seen = modules, found, origin, seen
        self.names: dict[str, frozenset[str]] = {}
        self.locals: set[str] = set()
        self.globals: dict[str, Any] = {}
        self.defined_in: type | None = None

    def run_method(
        self,
        path: str,
        name: str,
        args: Sequence[frozenset[str]],
        kwargs: Mapping[str, frozenset[str]],
        after: type | None = None,
    ) -> None:
        """Follow a method of a module; `after` is the class whose super() looks it up."""
        kinds = model_classes(self.modules[path])
        kinds = kinds[kinds.index(after) + 1 :] if after in kinds else kinds
        owner = next((kind for kind in kinds if name in vars(kind)), None)
        if owner is None or is_from(owner, "torch", "builtins"):
            return
        function = function_of(vars(owner)[name])
        if function is not None:
            self.run(function, [frozenset({path}), *args], kwargs, owner)

    def run(
        self,
        function: FunctionType,
        args: Sequence[frozenset[str]],
        kwargs: Mapping[str, frozenset[str]],
        owner: type | None = None,
    ) -> None:
        """Follow a function that is called with these modules."""
        given = dict(zip(inspect.getargs(function.__code__).args, args, strict=False))
        given |= {name: value for name, value in kwargs.items() if value}
        key = (function, repr(sorted((name, sorted(value)) for name, value in given.items())))
        definition = None if key in self.seen else definition_of(function)
        self.seen.add(key)
        if definition is None:
            return
        inner = _Reader(self.modules, self.found, self.origin, self.seen)
        inner.names, inner.defined_in = given, owner
        inner.locals = {*function.__code__.co_varnames, *function.__code__.co_cellvars}
        inner.globals = function.__globals__
        inner.block(definition.body)

    def block(self, statements: Sequence[ast.stmt]) -> bool:
        """Follow statements; return whether nothing after them is reached."""
        return any(self.statement(one) for one in statements)

    def statement(self, node: ast.stmt) -> bool:
        """Follow a statement; return whether what comes after it is not reached."""
        if isinstance(node, ast.If):
            taken = self.branches(node.test, node.body, node.orelse)
            return self.alternatives(taken)
        if isinstance(node, ast.Assign):
            value = self.value(node.value)
            for target in node.targets:
                self.assign(target, value)
        elif isinstance(node, ast.For):
            self.iterate(node.target, node.iter)
            self.block([*node.body, *node.orelse])
        else:
            self.parts(node)
        return isinstance(node, (ast.Return, ast.Raise))

    def alternatives(self, blocks: Sequence[Sequence[ast.stmt]]) -> bool:
        """Follow each of these blocks; return whether nothing after them is reached."""
        whole, found, ends = self.found, [], []
        for block in blocks:
            self.found = WeightReads()
            ends.append(self.block(block))
            found.append(self.found)
        self.found = whole
        whole.add(found)
        return all(ends)

    def branches(self, test: ast.expr, body: Any, orelse: Any) -> list[Any]:
        """Return the branches that this model may take."""
        self.value(test)
        known = self.conditions().evaluate(test)
        if known is UNKNOWN:
            return [body, orelse]
        return [body] if known else [orelse]

    def conditions(self) -> Conditions:
        """Return an evaluator of conditions at this place of the code."""
        return Conditions(self.modules, self.names, self.locals, self.globals)

    def assign(self, target: ast.expr, value: frozenset[str]) -> None:
        """Let names stand for modules; modules stored elsewhere may be called."""
        if isinstance(target, ast.Name):
            self.names[target.id] = self.names.get(target.id, _NOTHING) | value
        elif isinstance(target, (ast.Tuple, ast.List)):
            for one in target.elts:
                self.assign(one, value)
        else:
            self.found.used |= value

    def iterate(self, target: ast.expr, source: ast.expr) -> None:
        """Let the names of a loop stand for the modules it iterates over."""
        value = self.value(source)
        if isinstance(source, ast.Call) and isinstance(target, ast.Tuple):
            name = getattr(source.func, "id", getattr(source.func, "attr", ""))
            if name == "zip" and len(source.args) == len(target.elts):
                for one, its_source in zip(target.elts, source.args, strict=True):
                    self.iterate(one, its_source)
                return
            if name == "enumerate":
                self.iterate(target.elts[-1], source.args[0])
                return
            target = target.elts[-1] if name == "items" else target
        self.assign(target, value)

    def parts(self, node: ast.AST) -> None:
        """Follow the children of a node; modules among them may be called somewhere."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self.statement(child)
            elif isinstance(child, ast.expr):
                value = self.value(child)
                if not isinstance(node, (ast.Expr, ast.Compare, ast.UnaryOp)):
                    self.found.used |= value
            else:
                self.parts(child)

    def value(self, node: ast.expr) -> frozenset[str]:
        """Follow an expression; return the modules it may be."""
        match node:
            case ast.Name():
                return self.names.get(node.id, _NOTHING)
            case ast.Attribute():
                return self.attribute(node)
            case ast.Subscript():
                if self.weight_of(node.value):
                    self.read(self.weight_of(node.value), self.found.readers_of_a_part)
                value = self.value(node.value)
                self.parts(ast.Expr(node.slice))
                return value
            case ast.Call():
                return self.call(node)
            case ast.IfExp():
                taken = self.branches(node.test, node.body, node.orelse)
                return _NOTHING.union(*(self.value(one) for one in taken))
            case ast.BoolOp():
                return _NOTHING.union(*(self.value(one) for one in node.values))
            case ast.NamedExpr():
                value = self.value(node.value)
                self.assign(node.target, value)
                return value
            case ast.ListComp() | ast.GeneratorExp() | ast.SetComp() | ast.DictComp():
                for one in node.generators:
                    self.iterate(one.target, one.iter)
                    for condition in one.ifs:
                        self.value(condition)
                is_dict = isinstance(node, ast.DictComp)
                for one in (node.key, node.value) if is_dict else (node.elt,):
                    self.found.used |= self.value(one)
                return _NOTHING
        self.parts(node)
        return _NOTHING

    def weight_of(self, node: ast.expr) -> frozenset[str]:
        """Return the layers whose weight an expression is."""
        if not isinstance(node, ast.Attribute) or node.attr != "weight":
            return _NOTHING
        owners = self.value(node.value)
        return frozenset(p for p in owners if "weight" in self.modules[p]._parameters)

    def read(self, paths: frozenset[str], places: dict[str, str]) -> None:
        """Record that code reads the weights of layers; a module may read its own."""
        for path in paths - {self.origin}:
            places.setdefault(path, model_classes(self.modules[self.origin])[0].__name__)

    def attribute(self, node: ast.Attribute) -> frozenset[str]:
        """Follow `value.attr`: a child, a weight, or a description of a weight."""
        if node.attr in _DESCRIBES and self.weight_of(node.value):
            return _NOTHING
        owners = self.value(node.value)
        self.read(self.weight_of(node), self.found.readers)
        children = {f"{path}.{node.attr}" if path else node.attr for path in owners}
        return self.entries(frozenset(one for one in children if one in self.modules))

    def entries(self, paths: frozenset[str]) -> frozenset[str]:
        """Return these modules, and the entries of those that are lists."""
        held = {
            f"{path}.{name}"
            for path in paths
            if isinstance(self.modules[path], (nn.ModuleList, nn.ModuleDict))
            for name in self.modules[path]._modules
        }
        return paths | {one for one in held if one in self.modules}

    def call(self, node: ast.Call) -> frozenset[str]:
        """Follow a call: of a layer, of a method, or of a function."""
        function = node.func
        name = function.id if isinstance(function, ast.Name) else ""
        if name in _ASKS and name not in self.locals:
            return _NOTHING
        args = [self.value(a.value if isinstance(a, ast.Starred) else a) for a in node.args]
        kwargs = {keyword.arg or "": self.value(keyword.value) for keyword in node.keywords}
        if name == "getattr" and name not in self.locals and len(node.args) > 1:
            return self.get_attribute(node)
        passed = _NOTHING.union(*args, *kwargs.values())
        if name in _ITERATES and name not in self.locals:
            return passed
        called = self.value(function)
        self.found.used |= called
        if isinstance(function, ast.Attribute):
            is_super = _is_super(function.value)
            owners = self.names.get("self", _NOTHING) if is_super else self.value(function.value)
            after = self.defined_in if is_super else None
            for path in owners:
                self.run_method(path, function.attr, args, kwargs, after)
            if not owners:
                self.found.used |= passed
            # Such as .values() of a list of modules.
            return self.entries(owners) if function.attr in ("values", "items") else _NOTHING
        helper = function_of(self.globals.get(name)) if name not in self.locals else None
        if helper is None or is_from(helper, "torch") or definition_of(helper) is None:
            self.found.used |= passed
        elif passed:
            self.run(helper, args, kwargs)
        return _NOTHING

    def get_attribute(self, node: ast.Call) -> frozenset[str]:
        """Follow `getattr(value, name)`; any child if the name is unknown."""
        owner, name = node.args[:2]
        known = self.conditions().evaluate(name)
        if isinstance(known, str):
            return self.attribute(ast.Attribute(owner, known, ast.Load()))
        owners = self.value(owner)
        return frozenset(
            child
            for path in owners
            for name in self.modules[path]._modules
            if (child := f"{path}.{name}" if path else name) in self.modules
        )


def _is_super(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    )

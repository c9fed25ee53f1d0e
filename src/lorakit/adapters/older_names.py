"""Renaming the tensors of adapters made with other versions of transformers.

transformers renames modules from version to version, and stacks the experts of a mixture in
parameters since version 5. Its conversions load older checkpoints; the same conversions rename an
adapter's tensors. Stacked experts that are fused, such as gate and up projections, have one update
whose lora_A are below each other and whose lora_B are the blocks of a diagonal.
"""

# transformers' conversions have few types.
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

from lorakit.config import LoraConfig
from lorakit.errors import AdapterMismatchError, first_few
from lorakit.injection.selection.parameters import WEIGHT, modules_by_path, parameter_at
from lorakit.injection.selection.peft_names import is_taken_for_experts
from lorakit.injection.selection.sites import AdapterTensors
from lorakit.injection.selection.targets import name_matches
from lorakit.injection.selection.variants import variants_of
from lorakit.layers.kinds.parameter import AdaptedParameter

_Tensors = TypeVar("_Tensors", bound=AdapterTensors)


def in_names_of(model: nn.Module, adapter: _Tensors) -> _Tensors:
    """Return an adapter whose tensors have the names of a model's modules and parameters.

    Args:
        model: The base, with other adapters or without.
        adapter: A dataclass of tensors by path; tensors that have a place in the model already, or
            under no name, stay as they are.

    Raises:
        AdapterMismatchError: Two tensors would get one name, or the updates of experts cannot be
            stacked.
    """
    modules = modules_by_path(model)
    if not isinstance(model, PreTrainedModel) or all(
        _has_place(modules, path) for path in _paths_of(adapter)
    ):
        return adapter
    names = _Names(model, modules)
    moved: dict[str, str] = {}
    experts: dict[str, dict[str, tuple[int, str]]] = {}
    for path in _paths_of(adapter):
        found = names.of(path)
        if isinstance(found, str):
            moved[path] = found
        elif path in adapter.factors:
            experts.setdefault(found.parameter, {})[path] = (found.slot, found.template)
    _require_one_each(moved)
    made = _move_tensors(adapter, moved)
    for parameter, members in experts.items():
        adapted = parameter_at(modules, parameter)
        if adapted is not None:
            made = _stack_experts(made, adapted, parameter, members, names.slots[parameter])
    return _of_experts_alone(model, made, [path for found in experts.values() for path in found])


def _paths_of(adapter: AdapterTensors) -> list[str]:
    """Return the paths of everything that an adapter has tensors for."""
    owners = (key.rpartition(".")[0] for key in adapter.replaced)
    paths = (*adapter.factors, *owners, *adapter.trained_tokens, *adapter.base_weights)
    return list(dict.fromkeys(paths))


def _has_place(modules: Mapping[str, nn.Module], path: str) -> bool:
    return path in modules or parameter_at(modules, path) is not None


@dataclass(frozen=True)
class _ExpertPlace:
    """Where an update of one expert's matrix belongs."""

    parameter: str
    """Path of the stacked weight."""
    slot: int
    """Position among the matrices fused in it."""
    template: str
    """The path with "*" for the expert's number."""


class _Names:
    """Finds a model's names for older ones."""

    def __init__(self, model: PreTrainedModel, modules: Mapping[str, nn.Module]) -> None:
        conversions = get_model_conversion_mapping(model)
        self._renamings: Any = [c for c in conversions if isinstance(c, WeightRenaming)]
        self._converters: Any = [c for c in conversions if isinstance(c, WeightConverter)]
        self._modules = modules
        self._prefix = f"{model.base_model_prefix}." if model.base_model_prefix else ""
        self.slots: dict[str, int] = {}
        """Number of matrices fused in each stacked weight that was found."""

    def of(self, path: str) -> str | _ExpertPlace:
        """Return the model's name of a module, the place of an expert's matrix, or the name given.

        Names of older checkpoints may be relative to the backbone, or have its prefix.
        """
        key, pattern = rename_source_key(f"{path}.{WEIGHT}", self._renamings, self._converters)
        if pattern is not None:
            place = self._expert_place(path, key, pattern)
            return path if place is None else place
        renamed = key.removesuffix(f".{WEIGHT}")
        if renamed == path:
            return path
        candidates = (renamed, f"{self._prefix}{renamed}", renamed.removeprefix(self._prefix))
        return next((name for name in candidates if name in self._modules), path)

    def _expert_place(self, path: str, key: str, pattern: str) -> _ExpertPlace | None:
        converter = next(c for c in self._converters if pattern in c.source_patterns)
        numbers = list(re.finditer(r"(?<=\.)\d+(?=\.)", path))
        names = (key, f"{self._prefix}{key}", key.removeprefix(self._prefix))
        parameter = next((name for name in names if _has_place(self._modules, name)), None)
        if parameter is None or not numbers or not _stacks_experts(converter):
            return None
        self.slots[parameter] = len(converter.source_patterns)
        start, end = numbers[-1].span()
        template = f"{path[:start]}*{path[end:]}"
        return _ExpertPlace(parameter, converter.source_patterns.index(pattern), template)


def _stacks_experts(converter: WeightConverter) -> bool:
    """Return whether a conversion stacks matrices (out, in), and fuses several along out."""
    kinds = [
        (type(operation), getattr(operation, "dim", None)) for operation in converter.operations
    ]
    is_fused = len(converter.source_patterns) > 1
    expected = [(MergeModulelist, 0), *([(Concatenate, 1)] if is_fused else [])]
    return kinds == expected and len(converter.target_patterns) == 1


def _require_one_each(moved: Mapping[str, str]) -> None:
    doubled = [name for name, count in Counter(moved.values()).items() if count > 1]
    if doubled:
        olds = [old for old, new in moved.items() if new == doubled[0]]
        raise AdapterMismatchError(
            f"Names of the adapter's tensors: got {' and '.join(olds)}, which are both "
            f"{doubled[0]!r} in this base, expected one. Load the base the adapter was made for."
        )


def _move_tensors(adapter: _Tensors, moved: Mapping[str, str]) -> _Tensors:
    """Return an adapter with its tensors under other paths, and settings that select these."""
    by_path = {
        field: {moved.get(path, path): value for path, value in getattr(adapter, field).items()}
        for field in ("factors", "convolutions", "trained_tokens", "base_weights")
    }
    by_name = {
        field: {_move_key(key, moved): tensor for key, tensor in getattr(adapter, field).items()}
        for field in ("companions", "replaced")
    }
    config = adapter.config
    indices = config.trainable_token_indices
    update: dict[str, Any] = {"modules_to_save": _move_names(config.modules_to_save, moved)}
    if isinstance(config.target_modules, tuple):
        update["target_modules"] = _move_names(config.target_modules, moved)
    if isinstance(indices, dict):
        update["trainable_token_indices"] = {moved.get(n, n): rows for n, rows in indices.items()}
    changed = {new: old for old, new in moved.items() if new != old and old in adapter.factors}
    ranks = {new: config.rank_for(old) for new, old in changed.items()}
    alphas = {new: config.alpha_for(old) for new, old in changed.items()}
    config = config.model_copy(update=update).with_values(ranks, alphas)
    embeddings = frozenset(moved.get(path, path) for path in getattr(adapter, "embeddings", ()))
    changes = {"config": config, "embeddings": embeddings, **by_path, **by_name}
    return replace(adapter, **changes)  # type: ignore[type-var]  # the type of the copy is the original's


def _move_key(key: str, moved: Mapping[str, str]) -> str:
    owner, _, last = key.rpartition(".")
    return f"{moved.get(owner, owner)}.{last}"


def _move_names(names: Iterable[str], moved: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(moved.get(name, name) for name in names))


def _stack_experts(
    adapter: _Tensors,
    adapted: AdaptedParameter,
    parameter: str,
    members: Mapping[str, tuple[int, str]],
    slots: int,
) -> _Tensors:
    """Return an adapter with one update of a stacked weight instead of one for each expert.

    Args:
        adapter: The adapter.
        adapted: The adapted stacked weight.
        parameter: Its path.
        members: For the path of each expert's matrix its position among the fused ones, and the
            path with "*" for the expert's number.
        slots: The number of fused matrices.

    Raises:
        AdapterMismatchError: The updates cannot be stacked.
    """
    config = adapter.config
    scalings = {path: config.scaling_for(path) for path in members}
    scaling = Counter(scalings.values()).most_common(1)[0][0]
    r = max(adapter.factors[path][0].shape[0] for path in members)
    in_features, out_features = type(adapted).factor_sizes(adapted)
    rows = out_features // slots
    some_A, some_B = adapter.factors[next(iter(members))]
    A = some_A.new_zeros(adapted.experts, slots * r, in_features)
    B = some_B.new_zeros(adapted.experts, out_features, slots * r)
    filled: set[tuple[int, int]] = set()
    problems: list[str] = []
    for path, (slot, template) in members.items():
        expert = _number_in(path, template)
        own_A, own_B = adapter.factors[path]
        shapes = (own_A.shape[1:], own_B.shape[:1])
        if expert >= adapted.experts or shapes != ((in_features,), (rows,)):
            problems.append(
                f"{path} is from {own_A.shape[-1]} to {own_B.shape[0]}, but {parameter!r} has "
                f"{adapted.experts} experts from {in_features} to {rows}"
            )
            continue
        problems += [
            f"{path} has {variant.title()}, which stacked weights cannot have"
            for variant in variants_of(config)
            if f"{path}.{variant.name}" in adapter.companions
        ]
        filled.add((slot, expert))
        own_r, share = own_A.shape[0], scalings[path] / scaling
        A[expert, slot * r : slot * r + own_r] = own_A
        block = B[expert, slot * rows : (slot + 1) * rows, slot * r : slot * r + own_r]
        block.copy_(own_B if share == 1 else own_B * share)
    problems += _missing(config, members, filled, adapted.experts)
    if problems:
        raise AdapterMismatchError(
            f"Updates of single experts do not fit {parameter!r} of this base: "
            f"{first_few(problems, 1)}, expected those of one mixture of experts. Load the base "
            "the adapter names, or another adapter."
        )
    factors = {path: pair for path, pair in adapter.factors.items() if path not in members}
    rank = slots * r
    alpha = config.alpha_for_scaling(scaling, rank)
    names = tuple(dict.fromkeys((*config.target_parameters, parameter)))
    config = config.model_copy(update={"target_parameters": names})
    config = config.with_values({parameter: rank}, {parameter: alpha})
    return replace(adapter, config=config, factors={**factors, parameter: (A, B)})  # type: ignore[type-var]  # the type of the copy is the original's


def _of_experts_alone(model: nn.Module, adapter: _Tensors, members: list[str]) -> _Tensors:
    """Return an adapter without the target names that select only experts.

    Where PEFT takes a name for experts, layers of that name need no tensors.
    """
    targets = adapter.config.target_modules
    if not isinstance(targets, tuple):
        return adapter
    layers = [path for path, (A, _) in adapter.factors.items() if A.ndim == 2]
    done = {
        name
        for name in targets
        if any(name_matches([name], p) and is_taken_for_experts(model, p) for p in members)
        and not any(name_matches([name], path) for path in layers)
    }
    left = tuple(name for name in targets if name not in done)
    return replace(adapter, config=adapter.config.model_copy(update={"target_modules": left}))  # type: ignore[type-var]  # the type of the copy is the original's


def _number_in(path: str, template: str) -> int:
    before, _, after = template.partition("*")
    return int(path.removeprefix(before).removesuffix(after))


def _missing(
    config: LoraConfig,
    members: Mapping[str, tuple[int, str]],
    filled: set[tuple[int, int]],
    experts: int,
) -> list[str]:
    """Return a problem for each expert's matrix that is selected but has no tensors."""
    targets = config.target_modules
    if not isinstance(targets, (str, tuple)):
        return []
    templates = dict(members.values())
    selected = {
        template.replace("*", str(expert)): (slot, expert)
        for slot, template in templates.items()
        for expert in range(experts)
    }
    return [
        f"there are no tensors for {path}, which target_modules select"
        for path, place in selected.items()
        if place not in filled and name_matches(targets, path)
    ]

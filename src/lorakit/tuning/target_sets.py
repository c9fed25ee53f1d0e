"""Sets of the matrices of a model, to search and study `lora.target_modules`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lorakit.errors import ConfigError
from lorakit.injection.selection.plan import plan_from_config
from lorakit.training.frozen_part.blocks import count_layers, layers_at

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from lorakit.recipes.recipe import Recipe
    from lorakit.recipes.search_sections import Depth

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_QUERY_VALUE = re.compile(r"(^|\.)([qv]|q_proj|v_proj|q_lin|v_lin|query|value)$")


@dataclass(frozen=True)
class Matrix:
    """The linear layers at the same place in every block of a model."""

    place: str
    """Path with `*` for numbers, such as "model.layers.*.mlp.up_proj"."""
    parameters_per_rank: int
    """Parameters of rank 1 on all of these layers: the sum of in + out."""

    @property
    def is_attention(self) -> bool:
        """Whether the layers belong to attention."""
        return _ATTENTION.search(self.place) is not None


TargetModules = str | tuple[str, ...]


@dataclass(frozen=True)
class TargetSet:
    """Modules to adapt together."""

    label: str
    """Name of the set in tables."""
    target_modules: TargetModules
    """Value of `lora.target_modules`."""
    parameters_per_rank: int
    layers: tuple[int, ...] | None = None
    """Value of `lora.layers_to_transform`."""
    layer_count: int = 0
    """Number of adapted layers; 0 if they are those of the recipe."""


def sets_at_depths(
    recipe: Recipe, given: Sequence[TargetModules] | None, depths: Sequence[Depth]
) -> list[TargetSet]:
    """Return the given sets, or those of the model, in all or the upper layers alone.

    Args:
        recipe: The recipe, which names no layers.
        given: Values of `lora.target_modules`; None takes sets of the model's matrices.
        depths: Which layers.

    Raises:
        ConfigError: The recipe names layers, directly or by the adapter that it starts from, or
            the model has no single list of layers.
        TargetError: A set matches nothing in the model.
    """
    named = "start_from" if recipe.start_from else "lora.layers_to_transform"
    if recipe.start_from or recipe.lora.layers_to_transform is not None:
        raise ConfigError(
            f"study.layers chooses the adapted layers: got {named}, which chooses them too. "
            "Remove one of the two."
        )
    total = count_layers(_skeleton(recipe))
    found: dict[tuple[str, int], TargetSet] = {}
    for depth in depths:
        count = len(layers_at(depth, total))
        layers = None if count == total else layers_at(depth, total)
        there = recipe.with_changes({"lora.layers_to_transform": layers}, "the study")
        sets = model_target_sets(there) if given is None else given_target_sets(there, given)
        for target_set in sets:
            label = f"{target_set.label}; {depth}" + (" layers" if depth == "all" else "")
            # Of a shallow model, two depths may be the same layers.
            made = replace(target_set, label=label, layers=layers, layer_count=count)
            found.setdefault((target_set.label, count), made)
    return list(found.values())


def model_target_sets(recipe: Recipe) -> list[TargetSet]:
    """Return sets of the matrices of a base: query and value, attention, the rest, and all.

    Only the configuration of the model is read; equal and empty sets are omitted. A recipe that
    starts from an adapter has one set, the adapter's.

    Raises:
        MissingFileError, ConfigError: There is no such model; see `Task.load_base`.
    """
    if recipe.start_from is not None:
        return _set_of_adapter(recipe)
    matrices = model_matrices(_skeleton(recipe), recipe)
    attention = [matrix for matrix in matrices if matrix.is_attention]
    groups = {
        "query, value": [m for m in attention if _QUERY_VALUE.search(m.place)],
        "attention": attention,
        "MLP": [matrix for matrix in matrices if not matrix.is_attention],
        "all": matrices,
    }
    sets: list[TargetSet] = []
    seen: list[list[Matrix]] = []
    for label, group in groups.items():
        if group and group not in seen:
            seen.append(group)
            modules = "all-linear" if label == "all" else names_of(group, matrices)
            size = sum(matrix.parameters_per_rank for matrix in group)
            sets.append(TargetSet(label, modules, size))
    return sets


def _set_of_adapter(recipe: Recipe) -> list[TargetSet]:
    from lorakit.training.starting_point import StartingPoint

    start = StartingPoint.of(recipe)
    modules = None if start is None else start.config.target_modules
    if start is None or not modules:
        raise ConfigError(
            f"Target modules cannot be searched: got the adapter of start_from "
            f"'{recipe.start_from}', which adapts parameters only, expected one that adapts "
            "modules. Name search.space or study.target_modules in the recipe."
        )
    return given_target_sets(start.resolve(recipe), [modules])


def given_target_sets(recipe: Recipe, given: Sequence[TargetModules]) -> list[TargetSet]:
    """Return the sets that a recipe names, with the parameters of rank 1 on each.

    Raises:
        TargetError: A set matches nothing in the model.
    """
    model = _skeleton(recipe)
    sets = []
    for modules in given:
        label = modules if isinstance(modules, str) else ", ".join(modules)
        sizes = [matrix.parameters_per_rank for matrix in model_matrices(model, recipe, modules)]
        sets.append(TargetSet(label, modules, sum(sizes)))
    return sets


def model_matrices(
    model: nn.Module, recipe: Recipe, target_modules: TargetModules = "all-linear"
) -> list[Matrix]:
    """Return the layers that a recipe adapts with the given target modules, by place.

    Raises:
        TargetError: The target modules match nothing.
    """
    changes = {"target_modules": target_modules, "task_type": recipe.task, "r": 1}
    changes |= {"rank_pattern": {}, "alpha_pattern": {}, "enable_lora": {}}
    plan = plan_from_config(model, recipe.lora.model_copy(update=changes))
    sizes: dict[str, int] = {}
    for site in plan.sites:
        place = re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", site.path)
        weight: Any = site.module.weight
        sizes[place] = sizes.get(place, 0) + sum(weight.shape)
    return [Matrix(place, size) for place, size in sizes.items()]


def names_of(group: Sequence[Matrix], all_matrices: Iterable[Matrix]) -> TargetModules:
    """Return the shortest names that select exactly a group of matrices.

    If no ending of a path distinguishes a matrix of the group from all others, a regular expression
    selects the whole group.

    >>> up, down = Matrix("layers.*.mlp.up", 1), Matrix("layers.*.mlp.down", 1)
    >>> names_of([up], [up, down])
    ('up',)
    >>> first, other = Matrix("h.*.attn.proj", 1), Matrix("h.*.mlp.proj", 1)
    >>> names_of([first], [first, other])
    ('attn.proj',)
    >>> inner, outer = Matrix("h.*.attn.out", 1), Matrix("h.*.out", 1)
    >>> names_of([outer], [inner, outer])
    '.*h[.][0-9]+[.]out'
    """
    others = [matrix.place for matrix in all_matrices if matrix not in group]
    names: list[str] = []
    for matrix in group:
        ending = matrix.place.rpartition("*.")[2].split(".")
        endings = [".".join(ending[-length:]) for length in range(1, len(ending) + 1)]
        distinct = [
            name
            for name in endings
            if not any(place == name or place.endswith(f".{name}") for place in others)
        ]
        if not distinct:
            return _regex(group)
        names.append(distinct[0])
    return tuple(dict.fromkeys(names))


def _regex(group: Sequence[Matrix]) -> str:
    places = [matrix.place.replace(".", "[.]").replace("*", "[0-9]+") for matrix in group]
    return f".*{places[0]}" if len(places) == 1 else f".*({'|'.join(places)})"


def _skeleton(recipe: Recipe) -> PreTrainedModel:
    from lorakit.models.pretrained import auto_model
    from lorakit.models.skeleton import load_skeleton
    from lorakit.training.tasks.base import loading_options

    return load_skeleton(auto_model(recipe.task), recipe.model, **loading_options(recipe))

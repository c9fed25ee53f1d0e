"""Check that a recipe selects what an adapter adapts and trains, in whatever words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorakit.adapters import Adapter
from lorakit.adapters.older_names import in_names_of
from lorakit.errors import ConfigError, first_few
from lorakit.injection.selection.plan import InjectionPlan, plan_from_config
from lorakit.injection.selection.plan_from_tensors import plan_from_tensors

if TYPE_CHECKING:
    from torch import nn


def require_same_selection(
    model: nn.Module, adapter: Adapter, selection: Mapping[str, Any], name: str
) -> None:
    """Refuse a recipe that selects other modules, heads, biases or tokens than an adapter has.

    Args:
        model: The base.
        adapter: The adapter.
        selection: Settings of the recipe that select them, by key; nothing is checked if empty.
        name: The adapter's name in the recipe.

    Raises:
        ConfigError: Names what differs first.
        TargetError: A pattern selects nothing.
    """
    if not selection:
        return
    wanted = adapter.config.model_copy(update={"init_lora_weights": True, **selection})
    recipe_has = _list_selected(plan_from_config(model, wanted))
    bare = replace(in_names_of(model, adapter), base_weights={})
    adapter_has = _list_selected(plan_from_tensors(model, bare))
    if recipe_has == adapter_has:
        return
    only_recipe = sorted(recipe_has - adapter_has)
    only_adapter = sorted(adapter_has - recipe_has)
    said = [f"{first_few(only_recipe)}, which it does not have"] if only_recipe else []
    said += [f"nothing for {first_few(only_adapter)}, which it has"] if only_adapter else []
    keys = ", ".join(f"lora.{key}" for key in selection)
    raise ConfigError(
        f"The recipe selects other modules than the adapter of start_from '{name}': got "
        f"{' and '.join(said)}, expected the same. Leave {keys} out, or train a new adapter."
    )


def _list_selected(plan: InjectionPlan) -> set[str]:
    """Return what a plan adapts and trains, one text for each."""
    biases = {f"{path}.bias" for path in (*plan.site_biases, *plan.other_biases)}
    tokens = {f"token {index} of {site.path}" for site in plan.tokens for index in site.indices}
    return {site.path for site in plan.sites} | set(plan.heads) | biases | tokens

"""The configuration of a run that starts from an adapter: the adapter's, with the recipe's keys."""

from __future__ import annotations

from typing import Any

from lorakit.adapters import Adapter
from lorakit.adapters.ranks import with_ranks
from lorakit.config import LoraConfig
from lorakit.errors import ConfigError
from lorakit.recipes.recipe import Recipe

_FREE = ("lora_dropout", "freeze_lora_a")
"""Settings of training alone, which the recipe decides."""
_SCALES = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
"""Settings that may differ, because the same update can be written with them."""
_SELECTION = (
    *("target_modules", "target_parameters", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "modules_to_save", "bias", "trainable_token_indices"),
)
"""Settings that may be written in another way, as long as they select the same."""
_NOT_COMPARED = ("task_type", "fan_in_fan_out")


def config_to_train(recipe: Recipe, parent: Adapter) -> tuple[LoraConfig, dict[str, Any]]:
    """Return the configuration to train, and what the recipe selects in other words.

    Args:
        recipe: The recipe; only keys that it gives count.
        parent: The adapter that it starts from.

    Returns: The configuration, and the keys that select modules, heads, biases or tokens in other
        words than the adapter's; whether they select the same can only be told on the base.

    Raises:
        ConfigError: A key contradicts the adapter; names all of them.
    """
    given = {key: getattr(recipe.lora, key) for key in recipe.lora.model_fields_set}
    theirs = parent.config
    differing = {
        key: value
        for key, value in given.items()
        if key not in _NOT_COMPARED and value != getattr(theirs, key)
    }
    selection = {key: value for key, value in differing.items() if key in _SELECTION}
    contradicting = differing.keys() - {*_FREE, *_SCALES, *_SELECTION}
    if contradicting:
        keys = sorted(contradicting)
        got = ", ".join(f"lora.{key}={given[key]!r}" for key in keys)
        expected = ", ".join(f"{key}={getattr(theirs, key)!r}" for key in keys)
        raise ConfigError(
            f"The recipe contradicts the adapter of start_from '{recipe.start_from}': got {got}, "
            f"expected {expected} as in the adapter. Leave these keys out, or train a new adapter."
        )
    changes = {key: value for key, value in differing.items() if key in (*_FREE, *_SCALES)}
    for key, pattern in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        if key in changes and pattern not in given:
            changes[pattern] = {}
    config = theirs.model_copy(update=changes)
    sets_scaling = given.keys() & {"lora_alpha", "use_rslora", "alpha_pattern"}
    if not sets_scaling and any(
        theirs.rank_for(path) != config.rank_for(path) for path in parent.factors
    ):
        config = _with_scalings_of(theirs, config, parent)
    return config, selection


def _with_scalings_of(theirs: LoraConfig, config: LoraConfig, parent: Adapter) -> LoraConfig:
    """Return a configuration with its ranks and the scalings of another one."""
    ranks = {path: config.rank_for(path) for path in parent.factors}
    alphas = {path: theirs.scaling_for(path) * r for path, r in ranks.items()}
    kept = {"init_lora_weights": config.init_lora_weights}
    return with_ranks(config, ranks, alphas).model_copy(update=kept)

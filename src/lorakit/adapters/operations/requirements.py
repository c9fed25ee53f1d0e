"""Requirements that operations have on adapters, and the target modules of their results."""

import re
from collections.abc import Mapping
from dataclasses import fields, replace

from lorakit.adapters.adapter import Adapter
from lorakit.config import LoraConfig
from lorakit.errors import AdapterFileError
from lorakit.initialization import initialization_of
from lorakit.injection.selection.attention import OUTPUT
from lorakit.layers.variants.table import VARIANTS

_SUPPORTED_FIELDS = {
    *("config", "factors", "replaced", "embeddings", "base_weights", "base_model"),
    "convolutions",
    "companions",  # a variant is named by its setting
}
_SUPPORTED_SETTINGS = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "bias"),
    *("modules_to_save", "task_type", "init_lora_weights", "use_rslora", "fan_in_fan_out"),
    *("eva_rho", "init_batches"),
    "target_parameters",  # the factors show what it selects
    "enable_lora",  # matters in training only
}


def require_low_rank(
    adapter: Adapter,
    action: str,
    name: str,
    next_step: str = "Merge such an adapter into its base instead.",
    *,
    takes_stacked: bool = False,
) -> None:
    """Reject an adapter whose update is more than s B A.

    Args:
        adapter: The adapter.
        action: The operation, such as "combine".
        name: Name of the adapter for error messages.
        next_step: Advice if the adapter uses another feature.
        takes_stacked: Whether factors of stacked weights (experts) are supported.

    Raises:
        AdapterFileError: The adapter uses another feature, or a factor is not a matrix of finite
            numbers; names it.
    """
    require_base_independent(adapter, action, name)
    supported = {variant.setting for variant in VARIANTS if variant.is_all_in_factors}
    used = [
        f"{key}={value!r}"
        for key, value in adapter.config.model_dump(exclude_defaults=True).items()
        if key not in _SUPPORTED_SETTINGS | supported
    ]
    used += [
        field.name
        for field in fields(adapter)
        if field.name not in _SUPPORTED_FIELDS and getattr(adapter, field.name)
    ]
    if used:
        raise AdapterFileError(
            f"Cannot {action} {name}: got {', '.join(used)}, expected updates that are exactly "
            f"s B A. {next_step}"
        )
    stacked = adapter.stacked if takes_stacked else ()
    for path, pair in adapter.factors.items():
        if path not in stacked and any(factor.ndim != 2 for factor in pair):
            shapes = " and ".join(str(tuple(factor.shape)) for factor in pair)
            raise AdapterFileError(
                f"Cannot {action} {name}: {path} has factors of shape {shapes}, expected matrices. "
                "Leave that module out."
            )
        if not all(bool(factor.isfinite().all()) for factor in pair):
            raise AdapterFileError(
                f"Cannot {action} {name}: {path} has NaN or infinite numbers, expected finite "
                "ones. Train again with a lower learning rate."
            )
    for path, shape in adapter.convolutions.items():
        if shape.groups > 1:
            raise AdapterFileError(
                f"Cannot {action} {name}: got {shape.groups} groups of channels at {path}, "
                "expected updates that change a weight. Leave that module out, or use the adapter "
                "as it is."
            )


def without_trained_tokens(adapter: Adapter) -> Adapter:
    """Return an adapter without its trained tokens, which do not depend on its factors."""
    config = adapter.config.model_copy(update={"trainable_token_indices": None})
    return replace(adapter, config=config, trained_tokens={})


def require_base_independent(adapter: Adapter, action: str, name: str) -> None:
    """Reject an adapter whose factors belong to a base that PEFT has changed.

    Args:
        adapter: The adapter.
        action: The operation, such as "combine".
        name: Name of the adapter for error messages.

    Raises:
        AdapterFileError: Its update is s (B A - B0 A0), where B0 and A0 depend on the base.
    """
    initialization = adapter.config.init_lora_weights
    if adapter.factors and initialization_of(initialization).changes_base_in_peft:
        raise AdapterFileError(
            f"Cannot {action} {name}: got init_lora_weights={initialization!r}, with which the "
            "update depends on the base, expected an update that does not. Load "
            "it into its base (load_adapter) and save it from there (save_adapter)."
        )


def list_whole_paths(paths: Mapping[str, object], like: LoraConfig) -> str | tuple[str, ...]:
    """Return target_modules that select these modules by their whole paths.

    The path of an attention also selects its output projection.

    Args:
        paths: Paths of the adapted modules.
        like: Configuration whose form is kept: a regex, which can exclude a module whose path has
            the same end, or names.
    """
    named = [p for p in paths if not (p.endswith(f".{OUTPUT}") and p.rpartition(".")[0] in paths)]
    if isinstance(like.target_modules, str) and like.target_modules != "all-linear":
        return "|".join(re.escape(path) for path in named)
    return tuple(sorted(named))

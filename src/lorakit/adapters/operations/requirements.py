"""What operations on adapters ask of them, and the targets of what they make."""

import re
from collections.abc import Mapping
from dataclasses import fields

from lorakit.adapters.adapter import Adapter
from lorakit.config import LoraConfig
from lorakit.config.initialization_names import is_rewriting
from lorakit.errors import AdapterFileError
from lorakit.injection.selection.attention import OUTPUT

_UNDERSTOOD_PARTS = {
    *("config", "factors", "replaced", "embeddings", "base_weights", "base_model"),
    "convolutions",
}
_UNDERSTOOD_SETTINGS = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "bias"),
    *("modules_to_save", "task_type", "init_lora_weights", "use_rslora", "fan_in_fan_out"),
    *("eva_rho", "init_batches"),
    "target_parameters",  # what they select shows in the factors
    *("freeze_lora_a", "enable_lora"),  # how an adapter is trained, not what it is
}


def require_low_rank(
    adapter: Adapter,
    action: str,
    name: str,
    next_step: str = "Merge such an adapter into its base instead.",
    *,
    takes_stacked: bool = False,
) -> None:
    """Refuse an adapter whose update is more than s B A.

    Args:
        adapter: The adapter.
        action: What is about to be done, such as "combine".
        name: What to call the adapter.
        next_step: What to do where it uses another feature.
        takes_stacked: Whether factors of stacked weights (experts) can be taken as well.

    Raises:
        AdapterFileError: It uses another feature, or a factor is no matrix of finite numbers;
            names what.
    """
    require_base_independent(adapter, action, name)
    used = [
        f"{key}={value!r}"
        for key, value in adapter.config.model_dump(exclude_defaults=True).items()
        if key not in _UNDERSTOOD_SETTINGS
    ]
    used += [
        part.name
        for part in fields(adapter)
        if part.name not in _UNDERSTOOD_PARTS and getattr(adapter, part.name)
    ]
    if used:
        raise AdapterFileError(
            f"Cannot {action} {name}: got {', '.join(used)}, expected updates that are s B A and "
            f"nothing else. {next_step}"
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


def require_base_independent(adapter: Adapter, action: str, name: str) -> None:
    """Refuse an adapter whose factors belong to a base that PEFT has changed.

    Args:
        adapter: The adapter.
        action: What is about to be done, such as "combine".
        name: What to call the adapter.

    Raises:
        AdapterFileError: Its update is s (B A - B0 A0), and B0 and A0 follow from the base.
    """
    initialization = adapter.config.init_lora_weights
    if adapter.factors and is_rewriting(initialization):
        raise AdapterFileError(
            f"Cannot {action} {name}: it has init_lora_weights={initialization!r}, so its factors "
            "are measured from some of the base's own, expected an update that needs no base. Load "
            "it into its base (load_adapter) and save it from there (save_adapter)."
        )


def named_targets(paths: Mapping[str, object], like: LoraConfig) -> str | tuple[str, ...]:
    """Return target_modules that select these modules by their whole paths.

    An attention's path stands for its output projection too.

    Args:
        paths: The adapted modules.
        like: Settings whose form is kept: a regex, which alone tells a module from one whose path
            ends in the same way, or names.
    """
    named = [p for p in paths if not (p.endswith(f".{OUTPUT}") and p.rpartition(".")[0] in paths)]
    if isinstance(like.target_modules, str) and like.target_modules != "all-linear":
        return "|".join(re.escape(path) for path in named)
    return tuple(sorted(named))

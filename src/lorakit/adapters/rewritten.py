"""New factors under an adapter's settings: what every operation on adapters ends in."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields

from torch import Tensor

from lorakit.adapters.adapter import Adapter
from lorakit.config import LoraConfig
from lorakit.errors import AdapterFileError

Factors = Mapping[str, tuple[Tensor, Tensor]]

_UNDERSTOOD_PARTS = {
    *("config", "factors", "replaced", "embeddings", "base_weights", "base_model"),
}
_UNDERSTOOD_SETTINGS = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "bias"),
    *("modules_to_save", "task_type", "init_lora_weights", "use_rslora", "fan_in_fan_out"),
    "freeze_lora_a",  # how an adapter is trained, not what it is
}


def require_low_rank(adapter: Adapter, action: str, name: str) -> None:
    """Refuse an adapter whose update is more than s B A.

    Args:
        adapter: The adapter.
        action: What is about to be done, such as "combine".
        name: What to call the adapter.

    Raises:
        AdapterFileError: It uses another feature, or a factor is no matrix of finite numbers;
            names what.
    """
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
            "nothing else. Merge such an adapter into its base instead."
        )
    for path, pair in adapter.factors.items():
        if any(factor.ndim != 2 for factor in pair):
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


def unit_scaled(config: LoraConfig, factors: Factors) -> LoraConfig:
    """Return settings with the ranks of these factors and a scaling of 1 in every module."""
    ranks = {path: A.shape[0] for path, (A, _) in factors.items()}
    return with_ranks(config, ranks, dict(ranks))


def with_ranks(
    config: LoraConfig, ranks: Mapping[str, int], alphas: Mapping[str, float]
) -> LoraConfig:
    """Return settings with these ranks and alphas by module path, and plain scaling alpha / r.

    The most frequent rank and alpha become r and lora_alpha; the rest goes into the patterns, by
    the last part of the path where that says it all, else by the whole path.
    """
    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return config.model_copy(
        update={
            "r": r,
            "lora_alpha": float(alpha),
            "rank_pattern": _pattern(ranks, r),
            "alpha_pattern": {k: float(v) for k, v in _pattern(alphas, alpha).items()},
            "use_rslora": False,
            "init_lora_weights": True,
        }
    )


def _pattern(values: Mapping[str, float], usual: float) -> dict:
    of_name: dict[str, set[float]] = {}
    for path, value in values.items():
        of_name.setdefault(path.rsplit(".", 1)[-1], set()).add(value)
    pattern = {}
    for path, value in values.items():
        last = path.rsplit(".", 1)[-1]
        if len(of_name[last]) > 1 or not last.isidentifier():
            # "^" keeps a pattern, which is matched against the end of a path, from longer paths.
            last = f"^{re.escape(path)}"
        if value != usual:
            pattern[last] = value
    return pattern


def named_targets(paths: Mapping[str, object], like: LoraConfig) -> str | tuple[str, ...]:
    """Return target_modules that select these modules by their whole paths.

    Args:
        paths: The adapted modules.
        like: Settings whose form is kept: a regex, which alone tells a module from one whose path
            ends in the same way, or names.
    """
    if isinstance(like.target_modules, str) and like.target_modules != "all-linear":
        return "|".join(re.escape(path) for path in paths)
    return tuple(sorted(paths))

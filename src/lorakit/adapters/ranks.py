"""Configurations with other ranks and alphas, written as PEFT's patterns."""

import re
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from lorakit.config import LoraConfig

Factors = Mapping[str, tuple[Tensor, Tensor]]


def with_unit_scaling(config: LoraConfig, factors: Factors) -> LoraConfig:
    """Return a configuration with the ranks of these factors and scaling 1 in every module."""
    ranks = {path: A.shape[-2] for path, (A, _) in factors.items()}
    return with_ranks(config, ranks, dict(ranks))


def with_ranks(
    config: LoraConfig, ranks: Mapping[str, int], alphas: Mapping[str, float]
) -> LoraConfig:
    """Return a configuration with these ranks and alphas by module path, and scaling alpha / r.

    The most frequent rank and alpha become r and lora_alpha; the others become patterns, by the
    module's name if that is unambiguous, else by its path.
    """
    r = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    return config.model_copy(
        update={
            "r": r,
            "lora_alpha": float(alpha),
            "rank_pattern": pattern_of(ranks, r),
            "alpha_pattern": {k: float(v) for k, v in pattern_of(alphas, alpha).items()},
            "use_rslora": False,
            **default_initialization_settings(),
        }
    )


def default_initialization_settings() -> dict[str, object]:
    """Return the default values of the settings for initialization."""
    names = ("init_lora_weights", "eva_rho", "init_batches")
    return {name: LoraConfig.model_fields[name].default for name in names}


def pattern_of(values: Mapping[str, float], usual: float) -> dict[str, float]:
    """Return the values that differ from the usual one, as one of PEFT's patterns.

    Args:
        values: Value of each adapted module by path.
        usual: Value of modules without an entry.
    """
    of_name: dict[str, set[float]] = {}
    for path, value in values.items():
        of_name.setdefault(path.rsplit(".", 1)[-1], set()).add(value)
    pattern: dict[str, float] = {}
    for path, value in values.items():
        last = path.rsplit(".", 1)[-1]
        if len(of_name[last]) > 1 or not last.isidentifier():
            # Patterns match the end of a path; "^" prevents a match with longer paths.
            last = f"^{re.escape(path)}"
        if value != usual:
            pattern[last] = value
    return pattern

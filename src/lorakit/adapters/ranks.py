"""Settings with other ranks and alphas, written as PEFT's patterns."""

import re
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from lorakit.config import LoraConfig

Factors = Mapping[str, tuple[Tensor, Tensor]]


def unit_scaled(config: LoraConfig, factors: Factors) -> LoraConfig:
    """Return settings with the ranks of these factors and a scaling of 1 in every module."""
    ranks = {path: A.shape[-2] for path, (A, _) in factors.items()}
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
            "rank_pattern": pattern_of(ranks, r),
            "alpha_pattern": {k: float(v) for k, v in pattern_of(alphas, alpha).items()},
            "use_rslora": False,
            **plain_start(),
        }
    )


def plain_start() -> dict[str, object]:
    """Return the settings of how updates begin, as they are where nothing is said of it."""
    names = ("init_lora_weights", "eva_rho", "init_batches")
    return {name: LoraConfig.model_fields[name].default for name in names}


def pattern_of(values: Mapping[str, float], usual: float) -> dict:
    """Return what differs from the usual value as one of PEFT's patterns.

    Args:
        values: By module path, of all adapted modules.
        usual: What modules without an entry have.
    """
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

"""Arithmetic on adapters as task vectors: scaling, negation, sums."""

from dataclasses import replace

import torch

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.combine import combine
from lorakit.adapters.rewritten import require_low_rank
from lorakit.errors import ConfigError


@torch.no_grad()
def scaled_adapter(adapter: Adapter, factor: float) -> Adapter:
    """Return an adapter whose every update is `factor` times as large; settings stay.

    Trained heads and biases are values, not updates, and are carried over as they are.

    Args:
        adapter: The adapter; it is left as it is.
        factor: Multiplied into lora_B; may be negative or zero.

    Raises:
        ConfigError: The factor is not finite.
        AdapterFileError: The adapter is more than s B A, or not finite.
    """
    if not abs(factor) < float("inf"):
        raise ConfigError(
            f"Cannot scale the adapter: got the factor {factor!r}, expected a finite number. "
            "Give another one."
        )
    require_low_rank(adapter, "scale", "the adapter")
    factors = {path: (A.clone(), B * factor) for path, (A, B) in adapter.factors.items()}
    return replace(adapter, factors=factors)


def negated_adapter(adapter: Adapter) -> Adapter:
    """Return an adapter that takes away what another adds: W0 + ΔW becomes W0 - ΔW.

    Example:
        Forget one task and learn another: `summed_adapters(negated_adapter(a), b)`.

    Source: Ilharco et al. 2022, arXiv:2212.04089, "forgetting via negation".
    """
    return scaled_adapter(adapter, -1.0)


def summed_adapters(*adapters: Adapter) -> Adapter:
    """Return the exact sum of adapters: ranks add up, up to the smaller side of each matrix.

    `resize_adapter` brings the sum back to a rank of one's choice.

    Raises:
        ConfigError: There is none.
        AdapterMismatchError: They do not belong to one base, or train the same head.
    """
    named = {f"adapter {number}": one for number, one in enumerate(adapters, start=1)}
    return combine(named, dict.fromkeys(named, 1.0), "cat")

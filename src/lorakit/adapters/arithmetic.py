"""Arithmetic on adapters as task vectors: scaling, negation, sums."""

from dataclasses import replace

import torch
from torch import Tensor

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.combine import combine
from lorakit.adapters.rewritten import require_low_rank
from lorakit.errors import ConfigError
from lorakit.ops.factored_svd import product_svd


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
    require_low_rank(adapter, "scale", "the adapter", takes_stacked=True)
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


def relative_distance(adapter: Adapter, other: Adapter) -> float | None:
    """Return ‖ΔW - ΔW'‖ / ‖ΔW'‖ over all modules of two adapters; None where ΔW' is zero."""
    difference = whole = 0.0
    for path in dict.fromkeys((*adapter.factors, *other.factors)):
        parts = []
        for one, sign in ((adapter, 1.0), (other, -1.0)):
            if path in one.factors:
                A, B = one.factors[path]
                parts.append((sign * one.config.scaling_for(path), A.double(), B.double()))
        difference += _squared_norm(parts)
        whole += _squared_norm([part for part in parts if part[0] < 0])
    return (difference / whole) ** 0.5 if whole else None


def _squared_norm(parts: list[tuple[float, Tensor, Tensor]]) -> float:
    """Return ‖Σ s B A‖_F², from the singular values of the factors side by side."""
    if not parts:
        return 0.0
    A = torch.cat([s * A for s, A, _ in parts], dim=-2)
    return product_svd(A, torch.cat([B for _, _, B in parts], dim=-1))[1].square().sum().item()

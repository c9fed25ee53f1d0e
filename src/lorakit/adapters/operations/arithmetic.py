"""Arithmetic on adapters as task vectors: scaling, negation, sums."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.operations.combine import combine
from lorakit.adapters.operations.requirements import require_low_rank
from lorakit.errors import ConfigError
from lorakit.ops.factored_svd import product_singular_values


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


def relative_distance(adapter: Adapter, terms: Sequence[tuple[float, Adapter]]) -> float | None:
    """Return ‖ΔW - Σ w ΔW'‖ / ‖Σ w ΔW'‖ over all modules; None where the sum is zero.

    Args:
        adapter: The adapter with ΔW.
        terms: Weight w and adapter of each ΔW'.

    Memory: the factors of one module once more, in float64.
    """
    difference = whole = 0.0
    signed = [(-1.0, adapter), *terms]
    for path in dict.fromkeys(path for _, one in signed for path in one.factors):
        parts = [
            (weight * one.config.scaling_for(path), *one.factors[path])
            for weight, one in signed
            if path in one.factors
        ]
        of_sum = parts[1:] if path in adapter.factors else parts
        difference += _squared_norm(parts)
        whole += _squared_norm(of_sum)
    return (difference / whole) ** 0.5 if whole else None


def _squared_norm(parts: Sequence[tuple[float, Tensor, Tensor]]) -> float:
    """Return ‖Σ s B A‖_F², from the singular values of the factors side by side."""
    if not parts:
        return 0.0
    A = torch.cat([s * A.double() for s, A, _ in parts], dim=-2)
    B = torch.cat([B.double() for _, _, B in parts], dim=-1)
    return product_singular_values(A, B).square().sum().item()

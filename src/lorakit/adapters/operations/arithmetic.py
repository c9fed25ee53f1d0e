"""Arithmetic on adapters as task vectors: scaling, negation and sums."""

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
    """Return an adapter with every update multiplied by `factor` and the same configuration.

    Trained heads and biases are values, not updates, and stay unchanged.

    Args:
        adapter: The adapter; it is not modified.
        factor: Factor of lora_B; may be negative or zero.

    Raises:
        ConfigError: The factor is not finite.
        AdapterFileError: The adapter is more than s B A, or not finite.
    """
    if not abs(factor) < float("inf"):
        raise ConfigError(
            f"Cannot scale the adapter: got the factor {factor!r}, expected a finite number. "
            "Choose another factor."
        )
    require_low_rank(adapter, "scale", "the adapter", takes_stacked=True)
    factors = {path: (A.clone(), B * factor) for path, (A, B) in adapter.factors.items()}
    return replace(adapter, factors=factors)


def negated_adapter(adapter: Adapter) -> Adapter:
    """Return an adapter that subtracts what another adds: W0 + ΔW becomes W0 - ΔW.

    Example:
        Forget one task and learn another: `summed_adapters(negated_adapter(a), b)`.

    Source: Ilharco et al. 2022, arXiv:2212.04089, "forgetting via negation".
    """
    return scaled_adapter(adapter, -1.0)


def summed_adapters(*adapters: Adapter) -> Adapter:
    """Return the exact sum of adapters; its rank is the sum of ranks, at most full rank.

    `resize_adapter` reduces the rank of the sum.

    Raises:
        ConfigError: No adapter is given.
        AdapterMismatchError: The adapters do not belong to one base, or train the same head.
    """
    named = {f"adapter {number}": one for number, one in enumerate(adapters, start=1)}
    return combine(named, dict.fromkeys(named, 1.0), "cat")


def relative_distance(adapter: Adapter, terms: Sequence[tuple[float, Adapter]]) -> float | None:
    """Return ‖ΔW - Σ w ΔW'‖ / ‖Σ w ΔW'‖ over all modules; None if the sum is zero.

    Args:
        adapter: The adapter of ΔW.
        terms: Weight w and adapter of each ΔW'.

    Memory: a float64 copy of the factors of one module.
    """
    difference = whole = 0.0
    signed = [(-1.0, adapter), *terms]
    for path in dict.fromkeys(path for _, one in signed for path in one.factors):
        updates = [
            (weight * one.config.scaling_for(path), *one.factors[path])
            for weight, one in signed
            if path in one.factors
        ]
        of_sum = updates[1:] if path in adapter.factors else updates
        difference += _squared_norm(updates)
        whole += _squared_norm(of_sum)
    return (difference / whole) ** 0.5 if whole else None


def _squared_norm(updates: Sequence[tuple[float, Tensor, Tensor]]) -> float:
    """Return ‖Σ s B A‖_F², from the singular values of the concatenated factors."""
    if not updates:
        return 0.0
    A = torch.cat([s * A.double() for s, A, _ in updates], dim=-2)
    B = torch.cat([B.double() for _, _, B in updates], dim=-1)
    return product_singular_values(A, B).square().sum().item()

"""Giving an adapter the ranks and scalings of another configuration, with the same updates."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.operations.requirements import (
    require_base_independent,
    require_low_rank,
    without_trained_tokens,
)
from lorakit.adapters.operations.resize import Resize, resize_adapter
from lorakit.config import LoraConfig


@torch.no_grad()
def reparametrize_adapter(adapter: Adapter, config: LoraConfig) -> Resize:
    """Give an adapter the ranks and scalings of a configuration.

    Its updates s B A stay the same: another scaling is made up for in lora_B, and a smaller rank
    loses as little as possible (see `resize_adapter`).

    Args:
        adapter: The adapter; it is not modified. Trained heads, biases and tokens stay unchanged.
        config: The configuration of the result; its `rank_for` and `scaling_for` count here.

    Returns: The adapter, unchanged factors being the same tensors, with the errors.

    Raises:
        ShapeError: A rank is larger than a side of a module's matrix.
        AdapterFileError: Its ranks would change, but it is more than s B A; or its update depends
            on the base.
    """
    factors = dict(adapter.factors)
    scalings = {path: adapter.config.scaling_for(path) for path in factors}
    errors = dict.fromkeys(factors, 0.0)
    resized = _group_by_new_rank(adapter, config)
    if resized:
        require_low_rank(
            without_trained_tokens(adapter), "resize", "the adapter", takes_stacked=True
        )
    for r, paths in resized.items():
        group = replace(adapter, factors={path: factors[path] for path in paths})
        made = resize_adapter(group, r)
        factors |= made.adapter.factors
        scalings |= {path: made.adapter.config.scaling_for(path) for path in paths}
        errors |= made.errors
    rescaled = {
        path: _with_scaling(pair, scalings[path] / config.scaling_for(path))
        for path, pair in factors.items()
    }
    if any(rescaled[path] is not adapter.factors[path] for path in rescaled):
        require_base_independent(adapter, "change the rank or scaling of", "the adapter")
    made = replace(adapter, config=config, factors=rescaled)
    return Resize(made, errors, _error_of_all(adapter, errors))


def _error_of_all(adapter: Adapter, errors: Mapping[str, float]) -> float:
    """Return the error of all modules together, from that of each."""
    if not any(errors.values()):
        return 0.0
    energies = {path: _energy(*pair) for path, pair in adapter.factors.items()}
    energies = {p: e * adapter.config.scaling_for(p) ** 2 for p, e in energies.items()}
    lost = sum(errors[path] ** 2 * energy for path, energy in energies.items())
    return (lost / sum(energies.values())) ** 0.5


def _energy(A: Tensor, B: Tensor) -> float:
    """Return ‖B A‖_F², as the sum of the elementwise product of B^T B and A A^T."""
    wide_A, wide_B = A.double(), B.double()
    return float(((wide_B.mT @ wide_B) * (wide_A @ wide_A.mT)).sum())


def _group_by_new_rank(adapter: Adapter, config: LoraConfig) -> Mapping[int, list[str]]:
    """Return the modules whose rank changes, by their new rank."""
    found: dict[int, list[str]] = {}
    for path in adapter.factors:
        r = config.rank_for(path)
        if r != adapter.config.rank_for(path):
            found.setdefault(r, []).append(path)
    return found


def _with_scaling(pair: tuple[Tensor, Tensor], ratio: float) -> tuple[Tensor, Tensor]:
    """Return factors whose lora_B is multiplied, in float32 at least, unless the ratio is 1."""
    if ratio == 1:
        return pair
    A, B = pair
    return A, B.to(torch.promote_types(B.dtype, torch.float32)) * ratio


def outline_of(adapter: Adapter, config: LoraConfig, device: torch.device) -> Adapter:
    """Return what `reparametrize_adapter` would, with tensors that have shapes but no values.

    Args:
        adapter: The adapter.
        config: The configuration of the result.
        device: Device of the tensors; on fake tensors they take no memory.
    """

    def empty(tensor: Tensor, *shape: int) -> Tensor:
        return torch.empty(shape or tensor.shape, dtype=tensor.dtype, device=device)

    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for path, (A, B) in adapter.factors.items():
        r = config.rank_for(path)
        factors[path] = empty(A, *A.shape[:-2], r, A.shape[-1]), empty(B, *B.shape[:-1], r)
    return replace(
        adapter,
        config=config,
        factors=factors,
        base_weights={},
        companions={key: empty(tensor) for key, tensor in adapter.companions.items()},
        replaced={key: empty(tensor) for key, tensor in adapter.replaced.items()},
        trained_tokens={key: empty(tensor) for key, tensor in adapter.trained_tokens.items()},
    )

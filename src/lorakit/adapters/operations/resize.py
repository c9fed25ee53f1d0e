"""Changing the rank of an adapter."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.operations.requirements import require_low_rank, without_trained_tokens
from lorakit.adapters.ranks import with_unit_scaling
from lorakit.config.frozen import freeze_fields
from lorakit.errors import ConfigError, ShapeError, first_few
from lorakit.ops.factored_svd import truncate_product


@dataclass(frozen=True)
class Resize:
    """An adapter with another rank, and its error.

    Attributes:
        adapter: The adapter; its scaling is 1 everywhere, as scalings are folded into lora_B.
        errors: ‖ΔW - ΔW_r‖_F / ‖ΔW‖_F by module path; 0 if the rank was not reduced, or the
            update is zero.
        error: The same ratio over all modules together.
    """

    adapter: Adapter
    errors: Mapping[str, float]
    error: float

    def __post_init__(self) -> None:
        """Freeze the mappings."""
        freeze_fields(self)


@torch.no_grad()
def resize_adapter(adapter: Adapter, r: int) -> Resize:
    """Change every update of an adapter to rank r, with the smallest possible error.

    A rank is increased with random rows (seeded) in lora_A and zero columns in lora_B: the update
    stays the same and can be trained further.

    Args:
        adapter: The adapter; it is not modified. Trained heads, biases and tokens stay unchanged.
        r: The new rank of every module.

    Returns: The adapter, its factors in float32 (float64 for float64 factors), with the errors.

    Raises:
        ConfigError: `r` is not a whole number above 0.
        ShapeError: `r` is larger than a side of a module's matrix; names such modules.
        AdapterFileError: The adapter is more than s B A, or not finite.

    Memory: no (out, in) matrix is formed.
    Source: Eckart and Young 1936; the SVD of a product by QR of its factors.
    """
    if type(r) is not int or r < 1:
        raise ConfigError(
            f"Cannot resize the adapter: got r={r!r}, expected a whole number above 0. Give a rank."
        )
    require_low_rank(without_trained_tokens(adapter), "resize", "the adapter", takes_stacked=True)
    require_rank_fits(adapter.factors, r, "resize the adapter")
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    errors: dict[str, float] = {}
    lost = whole = 0.0
    for path, (A, B) in adapter.factors.items():
        scaling = adapter.config.scaling_for(path)
        dtype = torch.promote_types(torch.promote_types(A.dtype, B.dtype), torch.float32)
        new_A, new_B, values = truncate_product(A, B, min(r, *A.shape[-2:], *B.shape[-2:]), scaling)
        energy = values.square()
        cut = energy[..., r:].sum().item()
        lost, whole = lost + cut, whole + energy.sum().item()
        errors[path] = (cut / energy.sum().item()) ** 0.5 if cut else 0.0
        factors[path] = _pad_rank(new_A.to(dtype), new_B.to(dtype), r)
    made = replace(adapter, config=with_unit_scaling(adapter.config, factors), factors=factors)
    return Resize(made, errors, (lost / whole) ** 0.5 if lost else 0.0)


def require_rank_fits(factors: Mapping[str, tuple[Tensor, Tensor]], r: int, action: str) -> None:
    """Reject a rank larger than a side of a matrix.

    Raises:
        ShapeError: Names the first such modules and the largest rank that fits all.
    """
    sides = {path: min(A.shape[-1], B.shape[-2]) for path, (A, B) in factors.items()}
    small = [f"{path} ({side})" for path, side in sides.items() if side < r]
    if small:
        raise ShapeError(
            f"Cannot {action}: got rank {r}, expected at most the smaller side of each matrix, "
            f"which it exceeds in {first_few(small)}. Use rank {min(sides.values())} or "
            "less."
        )


def _pad_rank(A: Tensor, B: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return factors of rank r with the same product: new rows of A are random, new B is zero."""
    missing = r - A.shape[-2]
    if missing <= 0:
        return A.contiguous(), B.contiguous()
    bound = A.shape[-1] ** -0.5  # bound of kaiming_uniform_ with a = sqrt 5
    shape = (*A.shape[:-2], missing, A.shape[-1])
    rows = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    wide_A = torch.cat([A, ((2 * rows - 1) * bound).to(A)], dim=-2)
    wide_B = torch.cat([B, B.new_zeros(*B.shape[:-1], missing)], dim=-1)
    return wide_A.contiguous(), wide_B.contiguous()

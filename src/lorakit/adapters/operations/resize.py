"""An adapter brought to another rank."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.operations.requirements import require_low_rank
from lorakit.adapters.ranks import with_unit_scaling
from lorakit.config.frozen import freeze_fields
from lorakit.errors import ConfigError, ShapeError, first_few
from lorakit.ops.factored_svd import truncated_product


@dataclass(frozen=True)
class Resize:
    """An adapter of another rank, and what that cost.

    Attributes:
        adapter: The adapter; its scaling is 1 everywhere, as scalings are folded into lora_B.
        errors: ‖ΔW - ΔW_r‖_F / ‖ΔW‖_F by module path; 0 where the rank did not fall, or the
            update is zero.
        error: The same over all modules together.
    """

    adapter: Adapter
    errors: Mapping[str, float]
    error: float

    def __post_init__(self) -> None:
        """Freeze the mappings."""
        freeze_fields(self)


@torch.no_grad()
def resize_adapter(adapter: Adapter, r: int) -> Resize:
    """Give every update of an adapter rank r, with the least error there can be.

    A larger rank than before is reached with rows of lora_A drawn at random (seeded) and columns
    of zeros in lora_B: the update stays the same and can be trained further.

    Args:
        adapter: The adapter; it is left as it is. Trained heads and biases are carried over.
        r: The new rank of every module.

    Returns: The adapter, its factors in float32 (float64 for float64 factors), with the errors.

    Raises:
        ConfigError: `r` is no whole number above 0.
        ShapeError: `r` is larger than a side of a module's matrix; names all such modules.
        AdapterFileError: The adapter is more than s B A, or not finite.

    Memory: never a matrix of (out, in).
    Source: Eckart and Young 1936; the SVD of a product by QR of its factors.
    """
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise ConfigError(
            f"Cannot resize the adapter: got r={r!r}, expected a whole number above 0. Give a rank."
        )
    require_low_rank(adapter, "resize", "the adapter", takes_stacked=True)
    require_rank_fits(adapter.factors, r, "resize the adapter")
    factors, errors = {}, {}
    lost = whole = 0.0
    for path, (A, B) in adapter.factors.items():
        scaling = adapter.config.scaling_for(path)
        dtype = torch.promote_types(torch.promote_types(A.dtype, B.dtype), torch.float32)
        new_A, new_B, values = truncated_product(
            A, B, min(r, *A.shape[-2:], *B.shape[-2:]), scaling
        )
        energy = values.square()
        cut = energy[..., r:].sum().item()
        lost, whole = lost + cut, whole + energy.sum().item()
        errors[path] = (cut / energy.sum().item()) ** 0.5 if cut else 0.0
        factors[path] = _widened(new_A.to(dtype), new_B.to(dtype), r)
    made = replace(adapter, config=with_unit_scaling(adapter.config, factors), factors=factors)
    return Resize(made, errors, (lost / whole) ** 0.5 if lost else 0.0)


def require_rank_fits(factors: Mapping[str, tuple[Tensor, Tensor]], r: int, action: str) -> None:
    """Refuse a rank beyond a side of a matrix.

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


def _widened(A: Tensor, B: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return factors of rank r with the same product; new rows of A are drawn, new B is zero."""
    missing = r - A.shape[-2]
    if missing > 0:
        bound = A.shape[-1] ** -0.5  # that of kaiming_uniform_ with a = sqrt 5
        shape = (*A.shape[:-2], missing, A.shape[-1])
        rows = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        A = torch.cat([A, ((2 * rows - 1) * bound).to(A)], dim=-2)
        B = torch.cat([B, B.new_zeros(*B.shape[:-1], missing)], dim=-1)
    return A.contiguous(), B.contiguous()

"""An update of some of the equal slices of a fused matrix.

GPT-2's `c_attn`, for example, holds the query, the key and the value below each other. If n of its
L slices are adapted, each by a separate low-rank product, the update is

    ΔW = s [B_1 A_1; 0; B_3 A_3]    A_i (r, in), B_i (out / L, r)

which is s B A with all A_i below each other and B in blocks: an ordinary update of rank n r, whose
B is never formed larger than (out, n r).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorakit.errors import AdapterMismatchError
from lorakit.layers.updates.low_rank_update import LowRankUpdate


class SlicedUpdate(LowRankUpdate):
    """The update of a fused matrix with a low-rank product for each adapted slice.

    Attributes:
        lora_A: The down-projections of the adapted slices below each other, (n r, in).
        lora_B: Their up-projections below each other, (n out / L, r), as loralib keeps them.
        parts: Whether each of the L slices is adapted.

    Source: Microsoft's loralib, `MergedLinear` and its `enable_lora`.
    """

    sharding_obstacle = (
        "has a product for each slice of a layer (lora.enable_lora, or a convolution in groups), "
        "expected one for the whole layer. Leave these slices out"
    )

    keeps_saved_factors = False

    parts: tuple[bool, ...] = ()

    def __init__(self, parts: Sequence[bool], *args: object, **kwargs: object):
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]  # those of LowRankUpdate
        self.parts = tuple(parts)

    @property
    def r(self) -> int:
        """Rank of each slice's product."""
        return self.lora_B.shape[-1]

    def operand_factors(self) -> tuple[Tensor, Tensor]:
        """Return A (n r, in) and B (out, n r), zero outside of its blocks."""
        return self.lora_A, in_blocks(self.lora_B, self.parts)

    def load_factors_(self, A: Tensor, B: Tensor) -> None:
        """Load factors in the form of `saved_factors`, in place.

        Raises:
            AdapterMismatchError: B is not zero outside of the blocks, so it mixes slices.
        """
        compact = out_of_blocks(B, self.parts)
        if compact is None:
            raise AdapterMismatchError(
                f"Factors of shape {tuple(A.shape)} and {tuple(B.shape)} do not fit a matrix of "
                f"which the parts {list(self.parts)} are adapted, each by itself: lora_B is not "
                "zero outside of their blocks. Load them as an adapter without enable_lora."
            )
        self.set_factors_(A, compact)

    def misfit(self, A: Tensor, B: Tensor) -> str | None:
        """Return that the rank is another one, or that B mixes slices, or None."""
        if A.shape[0] != self.lora_A.shape[0]:
            return f"has rank {A.shape[0]} in all its blocks, expected {self.lora_A.shape[0]}"
        if out_of_blocks(B, self.parts) is None:
            return f"mixes {len(self.parts)} slices that are adapted separately there"
        return None

    def extra_repr(self) -> str:
        """Show the slices as well."""
        return f"{super().extra_repr()}, parts={list(self.parts)}"


def in_blocks(B: Tensor, parts: Sequence[bool]) -> Tensor:
    """Return the up-projections of slices as one matrix that is zero outside of its blocks.

    Args:
        B: The up-projections of the n adapted slices below each other, (n out / L, r).
        parts: Whether each of the L slices is adapted.

    Returns: (out, n r).

    >>> in_blocks(torch.tensor([[1.0], [2.0]]), (True, False, True))
    tensor([[1., 0.],
            [0., 0.],
            [0., 2.]])
    """
    groups = sum(parts)
    blocks = iter(torch.block_diag(*B.chunk(groups)).chunk(groups))
    zeros = B.new_zeros(B.shape[0] // groups, groups * B.shape[-1])
    return torch.cat([next(blocks) if is_adapted else zeros for is_adapted in parts])


def out_of_blocks(B: Tensor, parts: Sequence[bool]) -> Tensor | None:
    """Undo `in_blocks`: return (n out / L, r) of (out, n r).

    None where B has another shape, or is not zero outside of its blocks.
    """
    groups = sum(parts)
    if not groups or B.shape[0] % len(parts) or B.shape[1] % groups:
        return None
    slices = zip(B.chunk(len(parts)), parts, strict=True)
    adapted = [rows for rows, is_adapted in slices if is_adapted]
    compact = torch.cat([rows.chunk(groups, dim=1)[n] for n, rows in enumerate(adapted)])
    return compact if torch.equal(in_blocks(compact, parts), B) else None

"""DoRA: a trained length, the magnitude, for each row of the updated weight."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.layers.variants.variant import LayerKind, UpdatedLayer, Variant
from lorakit.ops import LowRankTerm, RowScale


class Dora(Variant):
    """The weight W' = m (W0 + s B A) / ‖W0 + s B A‖ with one length m for each output.

    For an embedding the rows are the dim directions of its vectors, for a convolution the kernels
    of its outputs. It needs layers that apply row scales.

    Source: Liu et al. 2024, arXiv:2402.09353, equation 5.
    """

    method = "DoRA"
    setting = "use_dora"
    name = "magnitude"
    file_key = "lora_magnitude_vector"
    effect = (
        "scales each row of the weight by a trained magnitude (use_dora), whose effect depends on "
        "the base"
    )
    depends_on_base = True

    @classmethod
    def obstacle(cls, kind: type[LayerKind]) -> str | None:
        """Return a reason for layers that do not apply row scales."""
        return None if kind.applies_row_scales else "has no magnitude"

    @classmethod
    def initial(cls, layer: UpdatedLayer, update: Any) -> Tensor:
        """Return the lengths that leave every row of the updated weight as it is, (out,)."""
        A, B = update.operand_factors()
        return layer.norms_with(update, LowRankTerm(A, B, update.scaling))

    @classmethod
    def to_file(cls, tensor: Tensor, kernel: Sequence[int]) -> Tensor:
        """Return (out,), or (1, out, 1, …) for a convolution."""
        return tensor.view(1, -1, *(1,) * len(kernel)) if kernel else tensor

    @classmethod
    def from_file(cls, tensor: Tensor) -> Tensor:
        """Return (out,)."""
        return tensor.flatten() if tensor.ndim > 2 else tensor

    @classmethod
    def difference_in_peft(cls, groups: int) -> str | None:
        """Return that the rows of grouped convolutions have other norms there."""
        return "measures the rows of convolutions in groups" if groups > 1 else None

    @classmethod
    def term(
        cls, term: LowRankTerm, tensor: Tensor | None, layer: UpdatedLayer, update: Any
    ) -> LowRankTerm:
        """Add the scale of the rows; the norms are constants for the gradients."""
        return term._replace(row_scale=RowScale(tensor, layer.norms_with(update, term)))  # type: ignore[arg-type]  # it has a magnitude

    @classmethod
    def change(cls, delta: Tensor, W0: Tensor, tensor: Tensor | None) -> Tensor:
        """Return W' - W0, (out, in)."""
        directed = W0 + delta
        norms = torch.linalg.vector_norm(directed, dim=1, keepdim=True)
        lengths = tensor.detach().to(directed)[:, None]  # type: ignore[union-attr]  # it has a magnitude
        return directed.mul_(lengths / norms.clamp_min_(torch.finfo(norms.dtype).tiny)).sub_(W0)

"""LoRA on torch.nn.Linear."""

from torch import Tensor, nn

from lorakit.layers.adapted import AdaptedLayer
from lorakit.ops import LinearOperands, low_rank_linears


class AdaptedLinear(AdaptedLayer):
    """Base class of adapted linear layers, dense or quantised."""

    is_matrix_product = True

    in_features: int
    out_features: int
    bias: nn.Parameter | None

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (in_features, out_features)."""
        return module.in_features, module.out_features  # type: ignore[union-attr,return-value]

    def compute(self, x: Tensor, operands: LinearOperands) -> Tensor:
        """Map (*, in) to (*, out)."""
        return low_rank_linears(x, (operands,))[0]


class LoraLinear(AdaptedLinear, nn.Linear):
    """A linear layer h = x W0ᵀ + b + Σ s (x Aᵀ) Bᵀ over its active updates.

    Source: Hu et al. 2021, arXiv:2106.09685, equation 3.
    """

    plain_class = nn.Linear

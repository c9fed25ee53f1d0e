"""LoRA on torch.nn.Linear, and on GPT-2's Conv1D, whose weight is stored (in, out)."""

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorakit.layers.adapted import AdaptedLayer
from lorakit.ops import LinearOperands, low_rank_linears
from lorakit.ops.weight_products import forward_product

_PLAIN_FORWARDS = (nn.Linear.forward, Conv1D.forward)


class MatrixProduct(AdaptedLayer):
    """Base class of adapted layers whose output is the input times a matrix."""

    is_matrix_product = True
    bias: nn.Parameter | None

    def compute(self, x: Tensor, operands: LinearOperands) -> Tensor:
        """Map (*, in) to (*, out)."""
        return low_rank_linears(x, (operands,))[0]

    def base_output(self, x: Tensor) -> Tensor:
        """Return the output of the base alone."""
        if self.plain_class.forward not in _PLAIN_FORWARDS:
            return super().base_output(x)  # a subclass that may round elsewhere
        return forward_product(x, self.base_weight(), self.bias)  # type: ignore[arg-type]  # dense


class AdaptedLinear(MatrixProduct):
    """Base class of adapted linear layers, dense or quantized."""

    in_features: int
    out_features: int

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (in_features, out_features)."""
        return module.in_features, module.out_features  # type: ignore[union-attr,return-value]  # an attribute of a module


class LoraLinear(AdaptedLinear, nn.Linear):
    """A linear layer h = x W0ᵀ + b + Σ s (x Aᵀ) Bᵀ over its active updates.

    Source: Hu et al. 2021, arXiv:2106.09685, equation 3.
    """

    plain_class = nn.Linear


class LoraConv1D(MatrixProduct, Conv1D):
    """A transposed linear layer h = x W0 + b + Σ s (x Aᵀ) Bᵀ over its active updates."""

    plain_class = Conv1D

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (nx, nf)."""
        return module.weight.shape[0], module.weight.shape[1]  # type: ignore[union-attr,return-value]  # an attribute of a module

    def base_weight(self) -> Tensor:
        """Return the weight as (out, in)."""
        return self.weight.t()

    def orient(self, delta_weight: Tensor) -> Tensor:
        """Transpose (out, in) to the stored (in, out)."""
        return delta_weight.t()

    def forward(self, x: Tensor) -> Tensor:
        """Map (*, in) to (*, out)."""
        return self.executor(self, x)

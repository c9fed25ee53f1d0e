"""LoRA on transformers' Conv1D, the linear layer of GPT-2 whose weight is stored (in, out)."""

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.magnitude import linear_output


class LoraConv1D(AdaptedLayer, Conv1D):
    """A transposed linear layer h = x W0 + b + Σ s (x Aᵀ) Bᵀ over its active updates."""

    plain_class = Conv1D

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (nx, nf)."""
        return module.weight.shape[0], module.weight.shape[1]  # type: ignore[union-attr,return-value]

    def base_weight(self) -> Tensor:
        """Return the weight as (out, in)."""
        return self.weight.t()

    def oriented(self, delta_weight: Tensor) -> Tensor:
        """Transpose (out, in) to the stored (in, out)."""
        return delta_weight.t()

    def forward(self, x: Tensor) -> Tensor:
        """Map (*, in) to (*, out)."""
        if self.per_row_adapters is not None and self.acts_per_row():
            return self.per_row_adapters.linear(self, x)
        updates = self.acting_updates()
        if not updates:
            return super().forward(x)
        return linear_output(self, x, updates)

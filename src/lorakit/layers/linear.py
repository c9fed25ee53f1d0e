"""LoRA on torch.nn.Linear."""

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F

from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.magnitude import have_magnitude, linear_output, scales_rows
from lorakit.ops import low_rank_linear


class AdaptedLinear(AdaptedLayer):
    """What linear layers share, however their weight is kept."""

    in_features: int
    out_features: int
    bias: nn.Parameter | None

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (in_features, out_features)."""
        return module.in_features, module.out_features  # type: ignore[union-attr,return-value]

    def forward(self, input: Tensor) -> Tensor:
        """Map (*, in) to (*, out)."""
        if self.row_adapters is not None and self.acts_by_row():
            return self.row_adapters.linear(self, input)
        updates = self.acting_updates()
        if not updates:
            return self.base_output(input)
        if have_magnitude(updates) and not scales_rows(updates):
            return linear_output(self, input, updates)
        # Without gradients sharing costs more time than reading x once saves, but a mask is shared
        # all the same: checkpointing runs the layer without gradients first, then with them.
        shares = torch.is_grad_enabled() or any(update.drops for update in updates)
        if self.siblings is not None and shares and not is_compiling():
            return self.siblings.output(self, input)
        if have_magnitude(updates):
            return linear_output(self, input, updates)
        terms, bias, _ = self.operands(updates)
        return low_rank_linear(input, self.base_weight(), bias, terms)

    def base_output(self, input: Tensor) -> Tensor:
        """Return what the base alone makes of the input."""
        return F.linear(input, self.weight, self.bias)


class LoraLinear(AdaptedLinear, nn.Linear):
    """A linear layer h = x W0ᵀ + b + Σ s (x Aᵀ) Bᵀ over its active updates.

    Source: Hu et al. 2021, arXiv:2106.09685, equation 3.
    """

    plain_class = nn.Linear

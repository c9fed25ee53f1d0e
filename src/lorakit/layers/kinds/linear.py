"""LoRA on torch.nn.Linear."""

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn import functional as F

from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.magnitude import linear_output, runs_as_one_product


class AdaptedLinear(AdaptedLayer):
    """Base class of adapted linear layers, dense or quantised."""

    in_features: int
    out_features: int
    bias: nn.Parameter | None

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (in_features, out_features)."""
        return module.in_features, module.out_features  # type: ignore[union-attr,return-value]

    def forward(self, input: Tensor) -> Tensor:
        """Map (*, in) to (*, out)."""
        if self.per_row_adapters is not None and self.acts_per_row():
            return self.per_row_adapters.linear(self, input)
        updates = self.acting_updates()
        if not updates:
            return self.base_output(input)
        # Without gradients, sharing takes more time than reading x once saves, but a mask is shared
        # all the same: checkpointing runs the layer without gradients first, then with them.
        if (
            self.siblings is not None
            and (torch.is_grad_enabled() or self.siblings.drops())
            and runs_as_one_product(updates)
            and not is_compiling()
        ):
            return self.siblings.output(self, input)
        return linear_output(self, input, updates)

    def base_output(self, input: Tensor) -> Tensor:
        """Return the output of the base alone."""
        return F.linear(input, self.weight, self.bias)


class LoraLinear(AdaptedLinear, nn.Linear):
    """A linear layer h = x W0ᵀ + b + Σ s (x Aᵀ) Bᵀ over its active updates.

    Source: Hu et al. 2021, arXiv:2106.09685, equation 3.
    """

    plain_class = nn.Linear

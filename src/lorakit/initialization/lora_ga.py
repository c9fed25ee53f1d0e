"""LoRA-GA: factors from the singular vectors of the first gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorakit.config import LoraConfig
from lorakit.errors import ShapeError, first_few
from lorakit.initialization.protocol import (
    FreshUpdate,
    Initialization,
    TargetLayer,
)
from lorakit.ops.factored_svd import EXACT_SIDE

_POWER_STEPS = 4
_GAMMA = 16
"""The constant of LoRA-GA's scale, which its authors leave at 16."""


class LoraGa(Initialization):
    """The value "lora_ga": the first step moves the weight as full fine-tuning would.

    Source: Wang et al. 2024, arXiv:2407.05000.
    """

    source = "gradient"
    has_offset = True

    def check(self, layers: Sequence[TargetLayer], config: LoraConfig) -> None:
        """Refuse layers with fewer singular vectors than are needed.

        Raises:
            TargetError: One is not a linear layer.
            ShapeError: A rank is more than half of the smaller side.
        """
        super().check(layers, config)
        small = []
        for layer in layers:
            in_features, out_features = layer.adapted_class.factor_sizes(layer.module)
            if 2 * layer.r > min(in_features, out_features):
                small.append(f"{layer.path} (in={in_features}, out={out_features}, r={layer.r})")
        if small:
            raise ShapeError(
                f"Cannot initialize {first_few(small, 1)} with init_lora_weights='lora_ga': it "
                "needs 2r singular vectors of the gradient, expected r up to half of min(in, out). "
                "Lower r, or give these layers a rank_pattern."
            )

    def factors(self, fresh: FreshUpdate) -> tuple[Tensor, Tensor]:
        """Return the factors from the mean gradient."""
        return gradient_factors(fresh.matrix(), fresh.update.r)


@torch.no_grad()
def gradient_factors(gradient: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return factors whose first step moves the weight as full fine-tuning would.

    A has the right singular vectors 1 to r of the gradient; B has the left ones r + 1 to 2r, times
    their singular values, times out^(1/4) / sqrt(16).

    Args:
        gradient: Gradient of the loss with respect to the weight, (out, in), float32 or float64.
        r: At most half of min(out, in).

    Returns: A (r, in), B (out, r).

    Source: Wang et al. 2024, arXiv:2407.05000, section 3.3; the choice of vectors and the scale
        follow its authors' code and PEFT ("ArB2r", "stable").
    """
    side = min(gradient.shape)
    if side <= max(EXACT_SIDE, 4 * r):
        left, values, right = torch.linalg.svd(gradient, full_matrices=False)
    else:
        with torch.random.fork_rng(devices=_devices(gradient)):
            torch.manual_seed(0)
            left, values, columns = torch.svd_lowrank(gradient, 4 * r, niter=_POWER_STEPS)
        right = columns.t()
    scale = gradient.shape[0] ** 0.25 / _GAMMA**0.5
    return right[:r].contiguous(), left[:, r : 2 * r] * (values[r : 2 * r] * scale)


def _devices(tensor: Tensor) -> list[torch.device]:
    return [tensor.device] if tensor.is_cuda else []

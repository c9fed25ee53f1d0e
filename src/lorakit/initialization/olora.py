"""OLoRA: factors from the QR decomposition of the weight."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lorakit.config import LoraConfig
from lorakit.initialization.protocol import FreshUpdate, FromWeight, TargetLayer
from lorakit.layers import LoraConv1D


class Olora(FromWeight):
    """The value "olora": the first columns of Q and the first rows of R.

    Source: Büyükakyüz 2024, arXiv:2406.01775.
    """

    def file_problems(self, layers: Sequence[TargetLayer], config: LoraConfig) -> list[str]:
        """Return why the factors of a PEFT file cannot be put on these layers."""
        problems = super().file_problems(layers, config)
        conv1d = [layer.path for layer in layers if issubclass(layer.adapted_class, LoraConv1D)]
        if problems or not conv1d:
            return problems
        return [
            f"it has init_lora_weights='olora' on {conv1d[0]}, a Conv1D, whose transposed weight "
            "PEFT does not transpose. Convert it with PEFT's "
            "path_initial_model_for_weight_conversion."
        ]

    def factors(self, fresh: FreshUpdate) -> tuple[Tensor, Tensor]:
        """Return the orthonormal factors of the weight."""
        return orthonormal_factors(fresh.matrix(), fresh.update.r)


@torch.no_grad()
def orthonormal_factors(matrix: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Return the first r rows of R as A and columns of Q as B, of matrix = Q R.

    Args:
        matrix: (out, in), float32 or float64.
        r: At most min(out, in).

    Returns: A (r, in), B (out, r) with orthonormal columns.

    Source: Büyükakyüz 2024, arXiv:2406.01775, algorithm 1.
    """
    Q, R = torch.linalg.qr(matrix)
    return R[:r].contiguous(), Q[:, :r].contiguous()

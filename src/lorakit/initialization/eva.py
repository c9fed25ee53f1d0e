"""EVA: lora_A from the principal components of the layer's input, ranks where they explain most."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lorakit.config import LoraConfig
from lorakit.errors import TargetError
from lorakit.initialization.protocol import (
    FreshUpdate,
    Initialization,
    TargetLayer,
)


class Eva(Initialization):
    """The value "eva": A holds the first principal components of the input, and B is zero.

    Source: Paischer et al. 2024, arXiv:2410.07170.
    """

    source = "inputs"
    redistributes_ranks = True

    def check(self, layers: Sequence[TargetLayer], config: LoraConfig) -> None:
        """Refuse layers that are not linear, and biases that could lose their update.

        Raises:
            TargetError: One is not a linear layer, or all biases are trained.
        """
        super().check(layers, config)
        if config.bias == "all":
            raise TargetError(
                "Cannot initialize with init_lora_weights='eva' and bias='all': a layer that EVA "
                "leaves without a rank has no update to hold its trained bias. Use "
                "bias='lora_only', or another init_lora_weights."
            )

    def factors(self, fresh: FreshUpdate) -> tuple[Tensor, Tensor]:
        """Return the first r components as A, and B zero."""
        return fresh.matrix()[: fresh.update.r], torch.zeros_like(fresh.update.lora_B)


def redistribute_ranks(
    shares: Mapping[str, Tensor],
    leaders: Mapping[str, str],
    ranks: Mapping[str, int],
    max_ranks: Mapping[str, int],
) -> dict[str, int]:
    """Return ranks that go to the components that explain most, whatever their layer.

    Args:
        shares: Share of the variance that each component of a layer's input explains, (k,), by
            path.
        leaders: The first layer that reads the same input; it gets the largest rank of those.
        ranks: Ranks before; their sum over these layers stays.
        max_ranks: The largest rank of each layer.

    Source: Paischer et al. 2024, arXiv:2410.07170, section 3.2.
    """
    candidates = [
        (share, path)
        for path, of_layer in shares.items()
        for share in of_layer[: max_ranks[path]].tolist()
    ]
    candidates.sort(key=lambda pair: pair[0], reverse=True)  # the first layer wins a tie
    redistributed = dict.fromkeys(shares, 0)
    for _, path in candidates[: sum(ranks[path] for path in shares)]:
        redistributed[path] += 1
    for path in shares:
        leader = leaders[path]
        if leader in redistributed and (
            redistributed[leader] < redistributed[path] <= max_ranks[leader]
        ):
            redistributed[leader], redistributed[path] = redistributed[path], redistributed[leader]
    return redistributed

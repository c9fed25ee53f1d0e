"""LoRA+: lora_B learns at a higher rate than lora_A.

Source: Hayou et al. 2024, arXiv:2402.12354, section 4.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn


def split_groups(
    groups: Iterable[dict[str, Any]], model: nn.Module, ratio: float
) -> list[dict[str, Any]]:
    """Move every lora_B to a separate parameter group with another learning rate.

    Args:
        groups: An optimizer's parameter groups. They come first in the result, so that the logged
            learning rate is that of lora_A.
        model: The model of the parameters.
        ratio: Factor on the learning rate of a group for its lora_B.

    Returns: The groups without lora_B, followed by the groups of lora_B, if any.
    """
    lora_b = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if ".updates." in name and name.endswith(".lora_B")
    }
    rest, split = [], []
    for group in groups:
        moved = [parameter for parameter in group["params"] if id(parameter) in lora_b]
        others = [parameter for parameter in group["params"] if id(parameter) not in lora_b]
        rest.append({**group, "params": others})
        if moved:
            split.append({**group, "params": moved, "lr": group["lr"] * ratio})
    return [*rest, *split]

"""LoRA+: lora_B learns at a higher rate than lora_A.

Source: Hayou et al. 2024, arXiv:2402.12354, section 4.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn


def split_groups(
    groups: Iterable[dict[str, Any]], model: nn.Module, ratio: float
) -> list[dict[str, Any]]:
    """Give every lora_B a group of its own with another learning rate.

    Args:
        groups: An optimizer's parameter groups. They keep their places, so that the learning rate
            which is logged is that of lora_A.
        model: Whose parameters they are.
        ratio: What the learning rate of a group is multiplied by for its lora_B.

    Returns: The groups without lora_B, and after them those of lora_B, where there are any.
    """
    theirs = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if ".updates." in name and name.endswith(".lora_B")
    }
    rest, split = [], []
    for group in groups:
        own = [parameter for parameter in group["params"] if id(parameter) in theirs]
        others = [parameter for parameter in group["params"] if id(parameter) not in theirs]
        rest.append({**group, "params": others})
        if own:
            split.append({**group, "params": own, "lr": group["lr"] * ratio})
    return [*rest, *split]

"""How the experts of a base are computed, where torch's grouped product refuses their sizes."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from lorakit.layers.kinds.experts import expert_parameters, is_known_experts

_ALIGNED_BYTES = 16
"""The grouped product takes matrices whose rows are a multiple of this size."""


def compute_odd_experts_one_by_one(model: PreTrainedModel) -> None:
    """Let transformers compute experts one by one if their rows are no multiple of 16 bytes.

    So is a width of 20 in bfloat16; torch would raise "strides should be multiple of 16 bytes" in
    the first step. Models of usual widths are left as they are.

    Args:
        model: A loaded base.
    """
    if any(_are_odd(module) for module in model.modules() if is_known_experts(module)):
        model.set_experts_implementation("eager")


def _are_odd(experts: nn.Module) -> bool:
    weights = [experts.get_parameter(name) for name in expert_parameters(experts)]
    return any(
        width * weight.element_size() % _ALIGNED_BYTES
        for weight in weights
        for width in weight.shape[1:]
    )

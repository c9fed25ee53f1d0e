"""Lengths that batches are padded to, where every new length costs memory.

On a CPU oneDNN compiles a product of bfloat16 for each number of tokens and keeps the code, which
is gigabytes for a model that meets hundreds of lengths. Multiples of `MULTIPLE` tokens are few.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from lorakit.models.pretrained import model_limit

MULTIPLE = 32
"""Tokens."""


def length_multiple(model: PreTrainedModel, *, autocasts: bool = False) -> int | None:
    """Return the number of tokens that the lengths of batches should be multiples of.

    Args:
        model: The model, on its device.
        autocasts: Whether its products run under autocast to bfloat16.

    Returns: A number that the model's maximum length is a multiple of too, so that padding never
        exceeds it; None where any length is as good as another.
    """
    if next(model.parameters()).device.type != "cpu":
        return None
    if not (autocasts or _multiplies_bfloat16(model)):
        return None
    multiple = math.gcd(MULTIPLE, model_limit(model) or MULTIPLE)
    return multiple if multiple > 1 else None


def _multiplies_bfloat16(model: nn.Module) -> bool:
    """Return whether weights are bfloat16, or are made so from 4 bits."""
    return any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()) or any(
        getattr(module, "compute_dtype", None) == torch.bfloat16 for module in model.modules()
    )

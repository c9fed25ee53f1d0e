"""Three layers that may read one activation, and what tests of sibling groups do with them."""

import torch
from torch import nn

from lorakit import set_fused_mlp
from lorakit.injection.state import adapted_layers
from tiny_models.adapted import with_adapter

NAMES = ["q_proj", "k_proj", "v_proj"]


class Attention(nn.Module):
    """Three layers; `reads` says which of the two inputs each of them gets."""

    def __init__(self, reads="xxx", width=8):
        super().__init__()
        torch.manual_seed(0)
        self.reads = reads
        for name in NAMES:
            setattr(self, name, nn.Linear(width, width))

    def forward(self, x, y=None):
        inputs = {"x": x, "y": x * 2 if y is None else y}
        q, k, v = (
            getattr(self, name)(inputs[read]) for name, read in zip(NAMES, self.reads, strict=True)
        )
        return q * torch.sigmoid(k) + v


def adapted(model, **options):
    """Add a random adapter, and switch the fused MLPs off so that their layers are groups too."""
    targets = {"target_modules": NAMES} if isinstance(model, Attention) else {}
    with_adapter(model, **(targets | options))
    set_fused_mlp(model, False)
    return model


def ungrouped(model):
    """Dissolve the groups, so that every layer computes for itself alone; return the model."""
    for _, layer in adapted_layers(model):
        layer.siblings = None
        layer.choose_executor()
    return model


def step_(model):
    """Change the factors as an optimizer does."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.01)

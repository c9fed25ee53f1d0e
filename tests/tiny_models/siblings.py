"""Three layers that may read one activation, and what tests of sibling groups do with them."""

import torch
from torch import nn

from lorakit import LoraConfig, add_adapter, set_fused_mlp
from lorakit.injection.state import adapted_layers
from tiny_models import randomize_, tokens
from tolerances import GRADIENT_TOLERANCE, LOGITS_TOLERANCE, largest_error

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
    """Add an adapter with random factors, and keep MLPs apart so that theirs are groups too."""
    task = {"DistilBert": "SEQ_CLS", "Bert": "TOKEN_CLS"}
    task = next((t for n, t in task.items() if type(model).__name__.startswith(n)), None)
    targets = {"target_modules": NAMES} if isinstance(model, Attention) else {}
    add_adapter(model, LoraConfig(**({"r": 2, "task_type": task} | targets | options)))
    set_fused_mlp(model, False)
    return randomize_(model)


def apart(model):
    """Take the groups away, so that every layer computes on its own."""
    for _, layer in adapted_layers(model):
        layer.siblings = None
    return model


def gradients(model, *inputs):
    model.zero_grad()
    out = model(*inputs) if inputs else model(**tokens(model)).logits
    out.square().sum().backward()
    return out.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(got, expected):
    assert largest_error(got[0], expected[0]) < LOGITS_TOLERANCE
    assert list(got[1]) == list(expected[1]) and got[1]
    for name, gradient in expected[1].items():
        assert largest_error(got[1][name], gradient) < 10 * GRADIENT_TOLERANCE[torch.float32], name


def step_(model):
    """Change the factors as an optimizer does."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.01)

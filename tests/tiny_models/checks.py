"""A model's output and the gradients of one backward pass through it, and how to compare two."""

import torch

from lorakit import LoraConfig, add_adapter
from tiny_models import bert, distilbert, randomize_
from tolerances import LOGITS_TOLERANCE, largest_error


def with_adapter(build, **options):
    """Build a tiny model with a random adapter."""
    model = build()
    task = {distilbert: "SEQ_CLS", bert: "TOKEN_CLS"}.get(build)
    add_adapter(model, LoraConfig(**({"r": 2, "task_type": task} | options)))
    return randomize_(model)


def gradients(model, inputs):
    """Return the output, and the gradients of the sum of its squares by parameter."""
    model.zero_grad()
    out = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    out = out if isinstance(out, torch.Tensor) else out.logits
    out.float().square().sum().backward()
    names = (n.removeprefix("_orig_mod.") for n, _ in model.named_parameters())
    return out.detach(), {
        n: p.grad.clone()
        for n, p in zip(names, model.parameters(), strict=True)
        if p.grad is not None
    }


def assert_same(got, expected):
    """Fail if two results of `gradients` differ by more than rounding through a tiny model."""
    (out, grads), (expected_out, expected_grads) = got, expected
    assert largest_error(out, expected_out) < LOGITS_TOLERANCE
    assert list(grads) == list(expected_grads) and grads
    for name, gradient in expected_grads.items():
        assert largest_error(grads[name], gradient) < 1e-4, name

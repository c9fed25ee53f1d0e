"""Which models are followed from their output layer to their loss, and what is said of others."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fixtures.labelled_batches import batch
from lorakit.training.losses.find_output_loss import (
    all_logits_note,
    find_output_loss,
    read_output_loss,
)
from tiny_models import VOCABULARY, llama


class OwnHead(nn.Module):
    """A causal model around a Llama whose forward does something to the logits."""

    def __init__(self, change):
        super().__init__()
        self.inner, self.change = llama(), change
        self.config = self.inner.config

    def get_output_embeddings(self):
        return self.inner.lm_head

    def forward(self, labels=None, **inputs):
        out = self.inner(**inputs)
        out.logits = self.change(self.inner.lm_head, out.logits)
        if labels is not None:
            shifted = labels[:, 1:].reshape(-1)
            out.loss = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), shifted)
        return out


REFUSED = {
    "mask": (
        lambda head, z: z.index_fill(-1, torch.tensor([5]), -1e4),
        "it changes the logits of its output layer in an unknown way",
    ),
    "temperature": (
        lambda head, z: z / 1.3,
        "it changes the logits of its output layer in an unknown way",
    ),
    "slice": (lambda head, z: z[..., :-1], "it does not return all logits of its output layer"),
    "bug": (lambda head, z: z[99], "trying it raised IndexError: index 99 is out"),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED)
def test_an_unknown_way_to_the_logits_is_not_followed(change, said):
    model = OwnHead(change).train()
    inputs, labels = batch(model, rows=1)
    loss, reason = find_output_loss(model, inputs, labels)
    assert loss is None and reason.startswith(said)
    assert model.training and not model.inner.lm_head._forward_pre_hooks
    assert not model.inner.lm_head._forward_hooks


def test_logits_are_scaled_with_their_bias():
    model = OwnHead(lambda head, z: z * 0.25)
    model.config.logit_scale = 0.25
    model.inner.lm_head.bias = nn.Parameter(torch.randn(VOCABULARY))
    inputs, labels = batch(model, rows=1)
    loss, reason = find_output_loss(model, inputs, labels)
    assert loss is not None and loss.form.scale == 0.25, reason


def test_an_unknown_loss_is_not_followed():
    model = OwnHead(lambda head, z: z)
    inputs, labels = batch(model, rows=1)
    assert find_output_loss(model, inputs, labels)[0] is not None
    model.forward = lambda labels=None, **given: _with_a_penalty(model, labels, given)
    loss, reason = find_output_loss(model, inputs, labels)
    assert loss is None and reason.startswith("its loss is")


def _with_a_penalty(model, labels, given):
    out = OwnHead.forward(model, labels, **given)
    if labels is not None:
        out.loss = out.loss + 0.01
    return out


def test_without_an_output_layer_nothing_is_followed():
    model = OwnHead(lambda head, z: z)
    model.get_output_embeddings = lambda: None
    inputs, labels = batch(model, rows=1)
    assert find_output_loss(model, inputs, labels) == (None, "it names no output layer")
    assert all_logits_note(model, "it names no output layer") == (
        "Each step computes the logits of all its tokens at once, because lorakit cannot follow "
        "this OwnHead from its output layer to its loss: it names no output layer."
    )


def test_the_loss_that_a_configuration_describes_needs_no_values():
    model = llama()
    model.config.logit_scale = 0.5
    loss = read_output_loss(model)
    assert loss is not None and loss.form.scale == 0.5 and loss.head is model.lm_head
    assert read_output_loss(nn.Linear(2, 2)) is None

"""The attention of stacked batches takes another way to the gradients of short sequences."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lorakit.ops import short_attention
from lorakit.training.together.attention import with_short_attention
from tiny_models import VOCABULARY, bert, llama, t5


def run(model):
    ids = torch.randint(1, VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=mask).logits
    logits.float().pow(2).mean().backward()
    return logits.detach(), [p.grad.float() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("build", [llama, bert])
def test_models_compute_the_same_by_it(build, monkeypatch):
    model = build().to(torch.bfloat16).eval()
    expected, gradients = run(model)
    calls = []
    plain = short_attention.short_attention
    monkeypatch.setattr(short_attention, "short_attention", lambda *a: calls.append(a) or plain(*a))
    with with_short_attention():
        logits, found = run(model)
    assert calls and torch.equal(logits, expected)
    largest = max(gradient.norm() for gradient in gradients)  # those of key biases are all noise
    for got, wanted in zip(found, gradients, strict=True):
        assert (got - wanted).norm() <= 2e-2 * largest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_other_attention_is_transformers_own(dtype):
    model = t5().to(dtype).eval()
    ids = torch.tensor([[3, 4, 5]])
    expected = model(input_ids=ids, decoder_input_ids=ids).logits
    with with_short_attention():
        assert torch.equal(model(input_ids=ids, decoder_input_ids=ids).logits, expected)


def test_what_was_registered_is_there_again(monkeypatch):
    with pytest.raises(KeyError), with_short_attention():
        raise KeyError
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa_attention_forward
    other = object()
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", other)
    with with_short_attention():
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is other

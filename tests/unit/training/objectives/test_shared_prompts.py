"""A prompt is computed once where the model's attention takes a mask, and nowhere else."""

from contextlib import nullcontext

import pytest
import torch

from lorakit.data.answers import AnswerCollator
from lorakit.training.objectives.shared_prompts import (
    attention_inputs,
    can_share_prompts,
    takes_masks,
)
from tiny_models import bloom, gpt2, llama

IDS = [1, 2, 3, 4, 5, 6, 7]
EXAMPLES = [
    {"input_ids": IDS, "labels": IDS, "parts": [2, 3, 2]},
    {"input_ids": IDS[:4], "labels": IDS[:4], "parts": [1, 2, 1]},
]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_both_answers_have_the_logits_of_a_row_each(build, attention):
    model = build().eval()
    model.set_attn_implementation(attention)
    assert can_share_prompts(model, IDS, nullcontext())
    found = []
    for shares in (False, True):
        batch = AnswerCollator(0, shares_prompts=shares)(EXAMPLES)
        logits = model(**attention_inputs(model, batch)).logits
        segments = batch["segments"].flatten()
        logits = logits.view(-1, logits.shape[-1])
        found.append([logits[segments == part] for part in (1, 2)])
    for apart, shared in zip(*found, strict=True):
        torch.testing.assert_close(apart, shared, rtol=1e-4, atol=1e-5)


def test_models_that_cannot_are_told_apart():
    assert not can_share_prompts(bloom().eval(), IDS, nullcontext())  # takes no position ids
    assert not can_share_prompts(llama().eval(), IDS[:2], nullcontext())
    windowed = llama()
    windowed.config.sliding_window = 4
    assert not takes_masks(windowed)

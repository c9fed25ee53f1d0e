"""Copies of modules over the same weights."""

import pytest
import torch

from lorakit.models.same_weights import copy_over_same_weights
from tiny_models import bert, gpt2, llama, t5, tokens


@pytest.mark.parametrize("build", [llama, gpt2, bert, t5])
def test_a_copy_has_other_modules_and_the_very_parameters(build):
    model = build().eval()
    copy = copy_over_same_weights(model)
    assert not {*copy.modules()} & {*model.modules()}
    ours, theirs = dict(copy.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in theirs)
    with torch.no_grad():
        assert torch.equal(copy(**tokens(copy))[0], model(**tokens(model))[0])


def test_some_modules_may_have_weights_apart():
    model = llama()
    copy = copy_over_same_weights(model, apart=("lm_head",))
    assert copy.lm_head.weight is not model.lm_head.weight
    assert torch.equal(copy.lm_head.weight, model.lm_head.weight)
    assert copy.model.norm.weight is model.model.norm.weight

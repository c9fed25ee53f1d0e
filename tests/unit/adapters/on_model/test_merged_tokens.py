"""Trained tokens merged: outputs, ties and bytes."""

import pytest
import torch

from lorakit import (
    Adapter,
    LoraConfig,
    add_adapter,
    merge_adapters,
    merge_and_unload,
    unmerge_adapters,
)
from lorakit.layers import TrainedTokens
from tiny_models import gpt2, llama, logits
from tiny_models.trained_tokens import BUILDS, ROWS, TARGETS, with_tokens
from tolerances import LOGITS_TOLERANCE, largest_error


def assert_saved_gives(expected, model, folder):
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder).eval()
    assert largest_error(logits(again), expected) < LOGITS_TOLERANCE


@pytest.mark.parametrize("build", BUILDS)
def test_a_merge_keeps_the_output_and_unmerging_every_byte(build):
    model = with_tokens(build)
    expected = logits(model)
    before = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    merge_adapters(model)
    assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
    unmerge_adapters(model)
    assert torch.equal(logits(model), expected)
    for name, parameter in model.named_parameters():
        assert before[name][0] == id(parameter) and torch.equal(before[name][1], parameter)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("first", [True, False])
def test_merged_for_good_the_ties_are_those_of_before(build, first, tmp_path):
    plain = build()
    base_weight = plain.get_input_embeddings().weight
    model = with_tokens(build, model=plain)
    expected, rows = logits(model), next(iter(Adapter.from_model(model).trained_tokens.values()))
    if first:
        merge_adapters(model)
    merge_and_unload(model)
    assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
    assert not any(isinstance(m, TrainedTokens) for m in model.modules())
    weight = model.get_input_embeddings().weight
    assert torch.equal(weight[list(ROWS)], rows)
    assert torch.equal(base_weight, build().get_input_embeddings().weight), "written to"
    assert model.config.tie_word_embeddings == build().config.tie_word_embeddings
    output = model.get_output_embeddings()
    assert output is None or (output.weight is weight) == (build is not llama)
    assert_saved_gives(expected, model, tmp_path)


@pytest.mark.parametrize("build", [gpt2, llama])
def test_with_an_update_on_the_output_layer(build, tmp_path):
    model = with_tokens(build, target_modules=[TARGETS[build], "lm_head"])
    expected = logits(model)
    merge_adapters(model)
    assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
    merge_and_unload(model)
    assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
    assert not model.config.tie_word_embeddings
    assert_saved_gives(expected, model, tmp_path)


def test_other_rows_at_either_end_untie_them(tmp_path):
    model = with_tokens(gpt2, {"wte": [9, 5], "lm_head": [3]})
    expected = logits(model)
    merge_and_unload(model)
    assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
    assert not model.config.tie_word_embeddings
    assert_saved_gives(expected, model, tmp_path)


def test_rows_of_an_adapter_that_does_not_act_are_dropped():
    model = with_tokens(gpt2)
    add_adapter(model, LoraConfig(target_modules=["c_attn"]), "plain")
    expected = logits(model)
    merge_and_unload(model)
    assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
    assert torch.equal(model.transformer.wte.weight, gpt2().transformer.wte.weight)

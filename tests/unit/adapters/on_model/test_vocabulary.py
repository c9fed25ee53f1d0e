"""Bases whose vocabulary grows, and adapters that need it to."""

import pytest
import torch
from torch import nn

from lorakit import (
    Adapter,
    LoraConfig,
    add_adapter,
    load_adapter,
    quantize_model,
    save_adapter,
)
from lorakit.adapters import fit_vocabulary, grow_vocabulary
from lorakit.config import QuantizationConfig
from lorakit.errors import AdapterMismatchError, AdapterStateError, QuantizationError
from tiny_models import assert_untouched, bert, gpt2, llama, logits, randomize_, snapshot, t5
from tolerances import LOGITS_TOLERANCE, largest_error

GROWN = 36
WITH_NEW = {"input_ids": torch.tensor([[5, 33, 35, 7]])}


def grown(build=llama):
    model = build()
    grow_vocabulary(model, GROWN)
    return model


def adapted(build, **options):
    model = grown(build)
    add_adapter(model, LoraConfig(**options))
    return randomize_(model)


def new_logits(model):
    inputs = dict(WITH_NEW)
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[0, 34, 4]])
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize("build", [llama, gpt2, t5, lambda: bert("BertForMaskedLM")])
def test_growing_keeps_old_rows_and_ties_and_is_the_same_each_time(build):
    before, first = build(), grown(build)
    second = build()
    torch.manual_seed(99)
    grow_vocabulary(second, GROWN)
    assert first.config.vocab_size == GROWN
    for (name, one), other in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other), name
    for name, old in before.named_parameters():
        now = first.get_parameter(name)
        assert torch.equal(now[: len(old)], old), name
    ends = [first.get_input_embeddings().weight, first.get_output_embeddings().weight]
    assert (ends[0] is ends[1]) == (build is not llama)
    assert len(ends[1]) == GROWN


def test_growing_leaves_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    model = llama()
    torch.manual_seed(3)
    grow_vocabulary(model, GROWN)
    assert torch.equal(torch.rand(3), expected)


def test_new_biases_of_an_output_layer_are_the_mean_of_the_old():
    model = bert("BertForMaskedLM")
    with torch.no_grad():
        model.cls.predictions.decoder.bias.normal_()
    mean = model.cls.predictions.decoder.bias.mean()
    grow_vocabulary(model, GROWN)
    assert torch.allclose(model.cls.predictions.decoder.bias[-4:], mean)


def test_only_a_base_without_adapters_grows():
    for holder in ("", "model"):
        model = llama()
        add_adapter(model.get_submodule(holder), LoraConfig(target_modules=["q_proj"]))
        with pytest.raises(AdapterStateError, match=r"to 36 rows: it carries adapters.*Unload"):
            grow_vocabulary(model, GROWN)


def test_a_quantized_output_layer_is_refused():
    model = llama()
    holder = nn.ModuleDict({"a": nn.Linear(16, 32, bias=False), "b": nn.Linear(16, 16)})
    model.lm_head = quantize_model(holder, QuantizationConfig(bits=8))["a"]
    with pytest.raises(QuantizationError, match="Cannot resize lm_head to 36 rows"):
        grow_vocabulary(model, GROWN)
    assert len(model.get_input_embeddings().weight) == 32


NEEDY = {
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [35]},
    "tokens of the output layer": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"lm_head": [35]},
    },
    "embedding": {"target_modules": ["embed_tokens"]},
    "output layer": {"target_modules": ["lm_head"]},
    "embedding trained": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "output layer trained": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("case", NEEDY)
def test_an_adapter_that_needs_a_larger_vocabulary_says_so_and_fits_after(case, tmp_path):
    model = adapted(llama, **NEEDY[case])
    save_adapter(model, tmp_path)
    base = llama()
    before = snapshot(base)
    with pytest.raises(AdapterMismatchError, match=r"Call model.resize_token_embeddings\(36\)"):
        load_adapter(base, tmp_path)
    assert_untouched(base, before)
    adapter = Adapter.load(tmp_path)
    assert fit_vocabulary(base, adapter) == GROWN
    assert fit_vocabulary(base, adapter) is None
    add_adapter(base, adapter)
    assert largest_error(new_logits(base), new_logits(model)) < LOGITS_TOLERANCE


def test_repeated_base_weights_fill_the_new_rows():
    """A file as PEFT writes it after a resize: with the base's embeddings, new rows and all."""
    model = adapted(llama, target_modules=["q_proj"])
    with torch.no_grad():
        for weight in (model.model.embed_tokens.weight, model.lm_head.weight):
            weight[32:].normal_()
    repeated = {
        path: model.get_submodule(path).weight.detach().clone()
        for path in ("model.embed_tokens", "lm_head")
    }
    plain = Adapter.from_model(model)
    adapter = Adapter(plain.config, plain.factors, base_weights=repeated)
    base = llama()
    fit_vocabulary(base, adapter)
    add_adapter(base, adapter)
    assert largest_error(new_logits(base), new_logits(model)) < LOGITS_TOLERANCE


def test_what_needs_no_more_rows_leaves_the_base_as_it_is():
    model = llama()
    add_adapter(model, LoraConfig(target_modules=["q_proj"], trainable_token_indices=[31]))
    adapter, base = Adapter.from_model(model), llama()
    before = logits(base)
    assert fit_vocabulary(base, adapter) is None
    assert torch.equal(logits(base), before)

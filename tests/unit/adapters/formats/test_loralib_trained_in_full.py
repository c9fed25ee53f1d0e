"""Heads and biases beside the factors of a loralib state dict."""

import pytest
import torch

from lorakit import Adapter, LoraConfig, add_adapter, load_adapter
from lorakit.adapters import from_loralib, to_loralib
from lorakit.adapters.formats.loralib_trained_in_full import trained_in_full
from tiny_models import bert, logits, randomize_
from tolerances import LOGITS_TOLERANCE, largest_error

FACTORS = (".lora_A", ".lora_B")
ONE = torch.ones(1)


def test_names_and_settings():
    names = ("q.lora_A", "q.lora_B", "q.bias", "head.weight", "head.bias")
    found = trained_in_full(dict.fromkeys(names, ONE), ["q"], FACTORS)
    assert found.tensors.keys() == {"q.bias", "head.weight", "head.bias"}
    assert (found.bias, found.modules) == ("lora_only", ("head",))
    found = trained_in_full({"q.conv.bias": ONE, "norm.bias": ONE}, ["q"], FACTORS)
    assert found.tensors.keys() == {"q.bias", "norm.bias"} and found.bias == "all"
    assert trained_in_full({"q.lora_A": ONE}, ["q"], FACTORS) == ({}, "none", ())


@pytest.mark.parametrize("weight", ["q.weight", "q.conv.weight"])
def test_of_a_whole_state_dict_it_is_not_known_what_is_trained(weight):
    tensors = {weight: ONE, "head.weight": ONE, "q.bias": ONE}
    assert trained_in_full(tensors, ["q"], FACTORS) == ({}, "none", ())


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_an_adapter_keeps_its_head_and_biases(bias, tmp_path):
    model = bert("BertForSequenceClassification")
    options = {"target_modules": ["query"], "bias": bias, "task_type": "SEQ_CLS"}
    add_adapter(model, LoraConfig(r=2, lora_alpha=4, **options))
    randomize_(model)
    from_loralib(to_loralib(Adapter.from_model(model)), 4).save(tmp_path)
    again = bert("BertForSequenceClassification")
    load_adapter(again, tmp_path)
    assert largest_error(logits(again), logits(model)) < LOGITS_TOLERANCE

"""The reference is the base with everything that is trained off, or another adapter."""

import torch
from torch import nn

from lorakit import LoraConfig, add_adapter, set_adapter
from lorakit.injection import active_adapters
from lorakit.layers import LowRankUpdate
from lorakit.training.objectives.reference import (
    REFERENCE,
    copy_base_dropout,
    disable_base_dropout,
    reference_acts,
    reference_of,
)
from tiny_models import llama


def perturbed(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator)
    return model


def test_heads_biases_and_tokens_are_those_of_the_base():
    model, ids = llama().eval(), torch.tensor([[1, 2, 3]])
    before = model(input_ids=ids).logits
    config = {"modules_to_save": ["lm_head"], "trainable_token_indices": [2], "bias": "all"}
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"], **config))
    perturbed(model)
    assert not torch.allclose(model(input_ids=ids).logits, before)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    with reference_acts(model, reference_of(model)):
        assert torch.equal(model(input_ids=ids).logits, before)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trained


def test_an_adapter_of_that_name_is_the_reference():
    model = nn.Sequential(nn.Linear(3, 3))
    for name in ("default", REFERENCE):
        add_adapter(model, LoraConfig(r=2, target_modules=["0"]), name)
        set_adapter(model, name)
        perturbed(model)
    x = torch.ones(1, 3)
    expected = model(x)
    set_adapter(model, "default")
    assert reference_of(model) == REFERENCE
    with reference_acts(model, REFERENCE):
        assert torch.equal(model(x), expected)
    assert active_adapters(model) == ("default",)


def test_dropout_of_the_base_is_off_and_that_of_updates_stays():
    model = llama()
    model.config.attention_dropout = 0.5
    layer = model.model.layers[0].self_attn
    layer.attention_dropout = 0.5
    model.extra = nn.Dropout(0.3)
    add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1))
    disable_base_dropout(model)
    assert layer.attention_dropout == 0 and model.extra.p == 0
    update = next(m for m in model.modules() if isinstance(m, LowRankUpdate))
    assert update.drop_probability == 0.1


def test_a_model_takes_over_the_dropout_of_a_base():
    model, other = llama(), llama()
    other.model.layers[0].self_attn.attention_dropout = 0.5
    add_adapter(other, LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1))
    copy_base_dropout(model, other)
    assert [layer.self_attn.attention_dropout for layer in model.model.layers] == [0.5, 0.0]

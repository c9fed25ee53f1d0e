"""The selection that an adapter's file records."""

import pytest

from lorakit import LoraConfig, add_adapter
from lorakit.injection import adapter_config
from tiny_models import (
    Encoder,
    gpt2,
    llama,
)
from tiny_models.quantized import quantized


def paths(injection):
    return [match.path for match in injection.matches]


def test_the_recorded_config_selects_the_same_modules_again():
    first = llama()
    config = LoraConfig(
        r=2, exclude_modules=["o_proj"], layers_to_transform=[0], modules_to_save=["lm_head"]
    )
    expected = paths(add_adapter(first, config))
    recorded = adapter_config(first)
    assert recorded.exclude_modules is recorded.layers_to_transform is None
    assert paths(add_adapter(llama(), recorded)) == expected


def test_names_stand_for_the_modules_and_heads_that_they_selected():
    config = LoraConfig(r=1, target_modules=r".*layers\.0\..*_proj", modules_to_save=["norm"])
    model = llama()
    add_adapter(model, config)
    recorded = adapter_config(model)
    assert recorded.modules_to_save == ("model.norm",)
    targets = [name for name in recorded.target_modules if "layers.0." in name]
    assert len(targets) == len(recorded.target_modules) == 7  # "q_proj" would select two layers


@pytest.mark.parametrize("bits", [None, 4])
def test_conv1d_is_recorded_even_where_it_is_quantized(bits):
    model = gpt2() if bits is None else quantized(gpt2(), bits=bits)
    add_adapter(model, LoraConfig(r=1, target_modules=["c_attn"]))
    assert adapter_config(model).fan_in_fan_out
    other = llama()
    add_adapter(other, LoraConfig(r=1, fan_in_fan_out=True))
    assert not adapter_config(other).fan_in_fan_out


def test_an_attention_s_name_stands_for_its_output_projection_too():
    model = Encoder()
    add_adapter(model, LoraConfig(r=1, target_modules=["self_attn", "linear1"]))
    assert set(adapter_config(model).target_modules) == {"self_attn", "linear1"}

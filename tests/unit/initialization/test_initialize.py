"""The first factors of an adapter's updates, and weights that none can be computed from."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForCausalLM

from lorakit import LoraConfig, adapter_names, add_adapter
from lorakit.errors import AdapterMismatchError, MissingFileError, QuantizationError, TargetError
from lorakit.initialization.initialize import Initializer
from tiny_models import TinyNet, llama
from tiny_models.quantized import quantized

LOFTQ = LoraConfig(r=2, init_lora_weights="loftq")


def updates(model):
    return [m for path, m in model.named_modules() if path.endswith(".updates.default")]


@pytest.fixture
def checkpoint(tmp_path):
    """Load a model from its checkpoint, again each time."""
    llama().save_pretrained(tmp_path / "base")
    return lambda: AutoModelForCausalLM.from_pretrained(tmp_path / "base")


def test_loftq_needs_a_quantized_base(checkpoint):
    model = checkpoint()
    with pytest.raises(QuantizationError, match=r"q_proj and 13 more with .*not quantized"):
        add_adapter(model, LOFTQ)
    assert not adapter_names(model)


def test_loftq_needs_the_weights_from_before(checkpoint, tmp_path):
    nameless = quantized(llama())
    nameless.name_or_path = ""
    with pytest.raises(MissingFileError, match="does not say which checkpoint"):
        add_adapter(nameless, LOFTQ)
    assert type(nameless.model.layers[0].mlp.up_proj).__name__ == "Linear4bit"
    lost = quantized(checkpoint())
    lost.name_or_path = str(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="no checkpoint directory"):
        add_adapter(lost, LOFTQ)
    quantized(checkpoint()).save_pretrained(tmp_path / "four")
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "four")
    with pytest.raises(QuantizationError, match=r"got one of torch\.uint8.*16-bit checkpoint"):
        add_adapter(stored, LOFTQ)
    wider = quantized(checkpoint())
    tensors = {k: v.repeat(2, 1) if "up_proj" in k else v for k, v in llama().state_dict().items()}
    (tmp_path / "wider").mkdir()
    save_file(tensors, tmp_path / "wider" / "model.safetensors")
    wider.name_or_path = str(tmp_path / "wider")
    with pytest.raises(AdapterMismatchError, match=r"has shape \(64, 16\).*expected \(32, 16\)"):
        add_adapter(wider, LOFTQ.model_copy(update={"target_modules": ("up_proj",)}))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_weight_with_nan_is_refused_and_the_model_left_as_it_was(init):
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(TargetError, match=r"layers\.1\.mlp\.down_proj from its weight.*NaN"):
        add_adapter(model, LoraConfig(r=2, init_lora_weights=init))
    assert not adapter_names(model)
    assert all(type(m) is nn.Linear for m in model.modules() if isinstance(m, nn.Linear))
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_without_numbers_gets_factors_without_numbers():
    with torch.device("meta"):
        model = llama()
    add_adapter(model, LoraConfig(r=2, init_lora_weights="pissa"))
    assert updates(model) and all(u.initial_A.is_meta for u in updates(model))


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_until_there_is_data_factors_are_the_usual_ones(init):
    found = []
    for value in (init, True):
        torch.manual_seed(4)
        model = TinyNet()
        torch.manual_seed(5)
        add_adapter(model, LoraConfig(r=2, init_lora_weights=value, target_modules=["up"]))
        found.append([(u.lora_A, u.lora_B) for u in updates(model)])
    for one, other in zip(*found, strict=True):
        assert all(map(torch.equal, one, other)) and other[1].eq(0).all()


def test_factors_of_a_peft_file_are_measured_from_those_that_it_left_out():
    config = LoraConfig(r=2, init_lora_weights="pissa", target_modules=["up"])
    model, fresh = TinyNet(), TinyNet()
    for one in (model, fresh):
        add_adapter(one, config)
    layer, factors = model.layers[0]["up"], (torch.randn(2, 8), torch.randn(16, 2))
    update, first = layer.updates["default"], fresh.layers[0]["up"].updates["default"]
    with torch.no_grad():
        update.initial_A.zero_()
    Initializer(model, config).load_(layer, update, "layers.0.up", factors)
    assert torch.equal(update.lora_A, factors[0]) and torch.equal(update.lora_B, factors[1])
    moved = update.scaling * (factors[1] @ factors[0] - first.lora_B @ first.lora_A)
    torch.testing.assert_close(update.delta_weight(), moved)

"""LoRA-FA (lora_A is never trained, what only its gradient needs is not saved), and one init."""

import json

import pytest
import torch

from lorakit import (
    LoraConfig,
    adapter_rows,
    add_adapter,
    count_parameters,
    load_adapter,
    save_adapter,
    set_adapter,
)
from lorakit.errors import ShapeError
from tiny_models import gpt2, llama, logits, randomize_, tokens
from tolerances import largest_error


def frozen(build=llama, **options):
    model = build()
    add_adapter(model, LoraConfig(r=2, freeze_lora_a=True, **options))
    return model


def trained_names(model):
    return {n.rsplit(".", 1)[-1] for n, p in model.named_parameters() if p.requires_grad}


def test_lora_a_is_never_trained_whichever_adapter_is_active():
    model = frozen(use_dora=True)
    assert trained_names(model) == {"lora_B", "magnitude"}
    add_adapter(model, LoraConfig(r=2), "other")
    set_adapter(model, ["default", "other"])
    states = {n: p.requires_grad for n, p in model.named_parameters() if n.endswith("lora_A")}
    assert all(required == ("other" in name) for name, required in states.items())
    set_adapter(model, "default")
    assert trained_names(model) == {"lora_B", "magnitude"}
    with adapter_rows(model, ["default", None]):
        assert trained_names(model) == {"lora_B", "magnitude"}
    half = count_parameters(frozen(target_modules=["q_proj"]))
    assert half.trainable * 2 == half.lora


@pytest.mark.parametrize("build", [llama, gpt2])
@pytest.mark.parametrize("options", [{}, {"lora_dropout": 0.3}, {"use_dora": True}], ids=str)
def test_all_other_gradients_are_those_with_a_trained_lora_a(build, options):
    gradients = []
    for freeze in (True, False):
        model = build()
        add_adapter(model, LoraConfig(r=2, freeze_lora_a=freeze, **options))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".updates." in name:
                    parameter.copy_(torch.linspace(0.1, 0.4, parameter.numel()).view_as(parameter))
        torch.manual_seed(0)
        model.train()(**tokens(model)).logits.square().mean().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    some, every = gradients
    assert some.keys() == {name for name in every if not name.endswith("lora_A")}
    for name, gradient in some.items():
        assert largest_error(gradient, every[name]) < 1e-5, name


def saved_bytes(model, run):
    """Bytes that autograd keeps for backward, those of parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    return sum(count for count, _ in kept.values()), output


def test_a_layer_does_not_save_its_input():
    tokens_count, inside = 64, 16
    kept = []
    for freeze in (True, False):
        model = llama()
        add_adapter(model, LoraConfig(r=2, freeze_lora_a=freeze, target_modules=["o_proj"]))
        layer = model.model.layers[0].self_attn.o_proj
        x = torch.randn(tokens_count, inside, requires_grad=True)
        kept.append(saved_bytes(model, lambda layer=layer, x=x: layer(x))[0])
    u = 4 * tokens_count * 2
    assert kept == [u, u + 4 * tokens_count * inside]


def test_a_fused_mlp_does_not_save_its_input():
    tokens_count, inside = 64, 16
    kept = []
    for freeze in (True, False):
        model = llama()
        add_adapter(model, LoraConfig(r=2, freeze_lora_a=freeze))
        mlp = model.model.layers[0].mlp
        x = torch.randn(tokens_count, inside, requires_grad=True)
        kept.append(saved_bytes(model, lambda mlp=mlp, x=x: mlp(x))[0])
    assert kept[1] - kept[0] == 4 * tokens_count * inside


def test_orthogonal_halves_of_an_odd_rank_are_refused():
    model = llama()
    config = LoraConfig(r=4, target_modules=["q_proj", "k_proj"], init_lora_weights="orthogonal")
    add_adapter(model, config)
    assert largest_error(logits(model), logits(llama())) < 1e-5
    assert all(p.any() for p in model.parameters() if p.requires_grad)
    odd = config.model_copy(update={"rank_pattern": {"0.self_attn.k_proj": 3}})
    with pytest.raises(ShapeError, match=r"layers\.0\.self_attn\.k_proj \(r=3\) with init"):
        add_adapter(model, odd, "odd")


def test_a_file_is_that_of_any_adapter(tmp_path):
    model = randomize_(frozen())
    save_adapter(model, tmp_path)
    assert "freeze_lora_a" not in json.loads((tmp_path / "adapter_config.json").read_text())
    twin = llama()
    load_adapter(twin, tmp_path, trainable=True)
    assert torch.equal(logits(twin), logits(model))
    assert trained_names(twin) == {"lora_A", "lora_B"}

"""The adapter that a model carries, as the fields of a value that shares its tensors."""

import pytest
import torch
from torch import nn

from lorakit import LoraConfig, add_adapter
from lorakit.adapters.carried_fields import carried_fields, tied_conflicts
from lorakit.errors import AdapterNameError
from lorakit.layers import KernelShape
from tiny_models import TinyNet, llama
from tiny_models.adapted import with_adapter


def test_tensors_are_the_models_own_detached():
    model = with_adapter(TinyNet, target_modules=["up", "embed"], use_dora=True, bias="lora_only")
    fields = carried_fields(model, "default")
    update = model.layers[0]["up"].updates["default"]
    A, B = fields["factors"]["layers.0.up"]
    assert A.data_ptr() == update.lora_A.data_ptr() and B.data_ptr() == update.lora_B.data_ptr()
    assert not (A.requires_grad or B.requires_grad)
    paths = ("embed", "layers.0.up", "layers.1.up")
    assert fields["factors"].keys() == {*paths}
    assert fields["companions"].keys() == {f"{path}.magnitude" for path in paths}
    assert fields["embeddings"] == {"embed"} and fields["convolutions"] == {}
    assert fields["replaced"].keys() == {"layers.0.up.bias", "layers.1.up.bias"}


def test_heads_tokens_kernels_and_the_base_are_told():
    model = with_adapter(llama, modules_to_save=["lm_head"], trainable_token_indices=[5, 1])
    model.name_or_path = "some/base"
    fields = carried_fields(model, "default")
    assert fields["base_model"] == "some/base"
    assert fields["replaced"].keys() == {"lm_head.weight"}
    assert {path: len(rows) for path, rows in fields["trained_tokens"].items()} == {
        "model.embed_tokens": 2
    }
    convolution = with_adapter(nn.Sequential(nn.Conv1d(4, 6, 3, groups=2)), target_modules=["0"])
    fields = carried_fields(convolution, "default")
    assert fields["convolutions"] == {"0": KernelShape(4, (3,), 2)}
    assert fields["base_model"] is None


def test_of_several_adapters_the_named_one_is_told():
    model = with_adapter(TinyNet, target_modules=["up"])
    add_adapter(model, LoraConfig(r=3, target_modules=["down"]), "other")
    assert carried_fields(model, "other")["factors"].keys() == {"layers.0.down", "layers.1.down"}
    with pytest.raises(AdapterNameError, match="No adapter is named 'othr'"):
        carried_fields(model, "othr")


def test_ranks_of_saved_factors_are_in_the_configuration_with_the_same_scaling():
    options = {"target_modules": ["q_proj"], "init_lora_weights": "pissa"}
    model = with_adapter(llama, lora_alpha=3, **options)
    fields = carried_fields(model, "default")
    path = "model.layers.0.self_attn.q_proj"
    update = model.get_submodule(path).updates["default"]
    A, B = fields["factors"][path]
    # The base keeps its weights, so that the file holds the difference, in twice the rank.
    assert A.shape[0] == fields["config"].rank_for(path) == 2 * update.r
    assert fields["config"].scaling_for(path) == update.scaling
    expected = update.lora_B @ update.lora_A - update.initial_B @ update.initial_A
    torch.testing.assert_close(B @ A, expected.detach())


def test_values_for_one_tensor_must_be_equal():
    weight = torch.zeros(2, 3)
    places = {"embed.weight": weight, "head.weight": weight.detach(), "other": torch.zeros(2, 3)}
    values = {key: torch.ones(2, 3) for key in places} | {"other": torch.zeros(2, 3)}
    assert tied_conflicts(places, values) == []
    (problem,) = tied_conflicts(places, values | {"head.weight": torch.zeros(2, 3)})
    assert problem.startswith("head.weight and embed.weight differ, but are one tensor")

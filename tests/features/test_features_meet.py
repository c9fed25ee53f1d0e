"""Where features meet: what one of them does to updates of another kind."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from lorakit import (
    Adapter,
    LoraConfig,
    add_adapter,
    count_parameters,
    disable_adapters,
    lora_state_dict,
    merge_adapters,
)
from lorakit.adapters import (
    adapter_state_dict,
    extract_adapter,
    from_loralib,
    load_adapter_state_dict,
    load_adapters,
    save_adapters,
)
from lorakit.distributed.sharding import require_shardable
from lorakit.errors import AdapterMismatchError, ConfigError, TargetError
from lorakit.injection import inject
from tiny_models import assert_untouched, randomize_, snapshot
from tolerances import largest_error

PARTS = (True, False, True)


def stack(*sizes):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))


def test_a_plan_that_cannot_be_recorded_leaves_the_model_as_it_was(monkeypatch):
    def fail(*_):
        raise TargetError("no")

    model = stack(4, 6)
    before = snapshot(model)
    with monkeypatch.context() as patched:
        patched.setattr(inject, "recorded_config", fail)
        with pytest.raises(TargetError):
            add_adapter(model, LoraConfig(r=1))
    assert_untouched(model, before)
    add_adapter(model, LoraConfig(r=1))
    assert not model[0].weight.requires_grad


def test_a_kept_initialization_is_scaled_for_loralib():
    model = stack(12, 10)
    add_adapter(model, LoraConfig(r=2, lora_alpha=4, init_lora_weights="pissa"))
    randomize_(model)
    update = model[0].updates["default"]
    adapter = from_loralib(lora_state_dict(model), 4.0)
    assert largest_error(adapter.delta_weight("0"), update.delta_weight()) < 1e-6


def test_nothing_is_copied_where_one_layer_of_several_is_refused():
    model = stack(6, 12, 9)
    fused = {"0": PARTS, "1": PARTS}
    add_adapter(model, LoraConfig(r=1, target_modules=["0", "1"], enable_lora=fused))
    randomize_(model)
    tensors = {key: tensor + 1 for key, tensor in adapter_state_dict(model).items()}
    good = {key: tensor.clone() for key, tensor in adapter_state_dict(model).items()}
    tensors["base_model.model.0.lora_B.weight"] = good["base_model.model.0.lora_B.weight"]
    with pytest.raises(AdapterMismatchError, match=r"mixes \d slices that are adapted separately"):
        load_adapter_state_dict(model, tensors)
    for key, tensor in adapter_state_dict(model).items():
        assert torch.equal(tensor, good[key]), key


def test_a_folder_whose_first_adapter_does_not_fit_says_so(tmp_path):
    model = stack(4, 6)
    add_adapter(model, LoraConfig(r=1))
    save_adapters(model, tmp_path)
    with pytest.raises(AdapterMismatchError, match="made for another base"):
        load_adapters(stack(5, 6), tmp_path)


def test_slices_are_not_extracted():
    config = LoraConfig(r=1, target_modules=["0"], enable_lora={"0": PARTS})
    with pytest.raises(AdapterMismatchError, match="Cannot extract slices of 0"):
        extract_adapter(stack(4, 6), stack(4, 6), config)


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (nn.Linear(6, 12), {"r": 2, "enable_lora": {"0": PARTS}}),
        (nn.Linear(6, 12), {"r": 2, "enable_lora": {"0": PARTS}, "use_dora": True}),
        (nn.Conv1d(8, 12, 3, groups=4), {"r": 4}),
        (nn.Conv2d(3, 8, 3), {"r": 2, "use_dora": True}),
    ],
    ids=["parts", "parts, dora", "groups", "convolution"],
)
def test_the_table_counts_what_is_trained(layer, options):
    model = nn.Sequential(layer)
    found = add_adapter(model, LoraConfig(target_modules=["0"], **options))
    assert sum(match.parameters for match in found.matches) == count_parameters(model).lora


def test_a_merge_that_fails_midway_is_taken_back(monkeypatch):
    model = stack(4, 6, 5)
    x = torch.randn(3, 4)
    base = model(x)
    add_adapter(model, LoraConfig(r=2))
    randomize_(model)
    weights = [layer.weight for layer in model]

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(model[1], "merge", fail, raising=False)
    with pytest.raises(MemoryError):
        merge_adapters(model)
    assert [layer.weight for layer in model] == weights
    with disable_adapters(model):
        assert torch.equal(model(x), base)


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (nn.Linear(6, 12), {"r": 2, "enable_lora": {"0": PARTS}}),
        (nn.Conv1d(4, 12, 3, groups=2), {"r": 2}),
    ],
    ids=["parts", "groups"],
)
def test_products_of_slices_are_not_sharded(layer, options):
    model = nn.Sequential(layer)
    model.get_input_embeddings = model.get_output_embeddings = lambda: None
    add_adapter(model, LoraConfig(target_modules=["0"], **options))
    with pytest.raises(ConfigError, match="a product for each slice of a layer"):
        require_shardable(model)


def test_eva_has_no_place_for_biases_of_layers_it_leaves_out():
    with pytest.raises(TargetError, match="init_lora_weights='eva' and bias='all'"):
        add_adapter(stack(4, 6), LoraConfig(r=1, init_lora_weights="eva", bias="all"))


def test_a_computed_initialization_is_saved_as_a_configuration():
    model = stack(12, 10)
    add_adapter(model, LoraConfig(r=2, init_lora_weights="lora_ga", init_batches=4))
    config = Adapter.from_model(model).config
    assert LoraConfig(**config.model_dump()) == config

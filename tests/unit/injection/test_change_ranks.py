"""Updates that get other ranks, in place."""

import pytest
import torch
from torch import nn

from lorakit import LoraConfig, add_adapter, merge_adapters
from lorakit.errors import AdapterNameError, AdapterStateError
from lorakit.injection import adapter_config
from lorakit.injection.change_ranks import change_ranks
from tiny_models import TinyNet, logits, randomize_

UP, DOWN = "layers.0.up", "layers.1.down"


def carrying(**options):
    model = TinyNet()
    base = logits(model)
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["up", "down", "embed"]} | options
    add_adapter(model, LoraConfig(**settings))
    return randomize_(model), base


def update_of(model, path):
    return model.get_submodule(path).updates["default"]


def test_named_updates_begin_again_at_zero_and_the_others_stay():
    model, _ = carrying(lora_dropout=0.3)
    other = update_of(model, "layers.1.up")
    kept = other.lora_A.clone()
    config = LoraConfig(r=2, lora_alpha=6, rank_pattern={UP: 3})
    update_of(model, DOWN).lora_A.requires_grad_(False)
    change_ranks(model, "default", config, {UP: 3, DOWN: 1, "embed": 4, "layers.1.up": 2})
    for path, r, random, zero in (
        (UP, 3, "lora_A", "lora_B"),
        (DOWN, 1, "lora_A", "lora_B"),
        ("embed", 4, "lora_B", "lora_A"),
    ):
        update = update_of(model, path)
        assert update.r == r == update.lora_A.shape[0] == update.lora_B.shape[1]
        assert getattr(update, zero).eq(0).all() and getattr(update, random).ne(0).all()
        assert update.scaling == config.scaling_for(path) and update.drop_probability == 0.3
        assert update.training is model.training
        assert update.lora_A.requires_grad is (path != DOWN) and update.lora_B.requires_grad
    assert update_of(model, "layers.1.up") is other and torch.equal(other.lora_A, kept)
    assert other.scaling == 3  # alpha is the new configuration's, whatever has its rank already
    assert adapter_config(model) is config


def test_biases_and_magnitudes_stay():
    model, _ = carrying(use_dora=True, bias="lora_only", target_modules=["up"])
    before = update_of(model, UP)
    change_ranks(model, "default", adapter_config(model), {UP: 5})
    update = update_of(model, UP)
    assert update.bias is before.bias and update.magnitude is before.magnitude
    assert update.depends_on_base and update is not before


def test_rank_zero_takes_an_update_out_and_leaves_what_others_adapt():
    model, base = carrying()
    add_adapter(model, LoraConfig(r=1, target_modules=["embed"]), "other")
    paths = [f"layers.{i}.{kind}" for i in (0, 1) for kind in ("up", "down")]
    change_ranks(model, "default", adapter_config(model), dict.fromkeys([*paths, "embed"], 0))
    assert all(type(model.get_submodule(path)) is nn.Linear for path in paths)
    assert list(model.embed.updates) == ["other"] and "default" not in model.embed.active_updates
    assert torch.equal(logits(model), base)


def test_a_model_that_is_merged_or_has_no_such_adapter_is_refused():
    model, _ = carrying()
    with pytest.raises(AdapterNameError, match="No adapter is named 'other'"):
        change_ranks(model, "other", LoraConfig(), {UP: 1})
    merge_adapters(model)
    with pytest.raises(AdapterStateError, match="Cannot change ranks while"):
        change_ranks(model, "default", LoraConfig(), {UP: 1})

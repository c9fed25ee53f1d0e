"""Adapters that begin where data says."""

import json

import pytest
import torch
from torch import nn

from lorakit import (
    LoraConfig,
    adapter_names,
    add_adapter,
    initialize_from_data,
    load_adapter,
    merge_adapters,
    save_adapter,
)
from lorakit.adapters.peft_files.files import CONFIG_FILE
from lorakit.errors import AdapterNameError, AdapterStateError, ConfigError, DataError
from lorakit.injection import adapter_config
from tiny_models import distilbert, llama, logits, padded_batches, randomize_, t5
from tiny_models.quantized import dense_twin, quantized
from tolerances import LOGITS_TOLERANCE, largest_error


def adapted(init, base=None, **options):
    model = llama() if base is None else base
    add_adapter(model, LoraConfig(**{"r": 2, "init_lora_weights": init} | options))
    return model


def update_of(model, path):
    return model.get_submodule(path).updates["default"]


def inputs_of(model, path, data):
    """What a layer of a model reads at positions that count."""
    seen = []
    handle = model.get_submodule(path).register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    for batch in data:
        with torch.no_grad():
            model(**batch)
        seen[-1] = seen[-1][(batch["labels"] != -100)]
    handle.remove()
    return torch.cat(seen)


PATHS = ["model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj"]


@pytest.mark.parametrize("path", PATHS)
def test_eva_s_directions_are_those_in_which_the_inputs_vary(path):
    x = inputs_of(llama(), path, padded_batches()).double()
    _, _, right = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    model = adapted("eva", eva_rho=1, target_modules=["o_proj", "down_proj"])
    initialize_from_data(model, padded_batches())
    A = update_of(model, path).lora_A.detach().double()
    assert largest_error((A @ right[:2].T).abs(), torch.eye(2).double()) < 1e-4
    assert update_of(model, path).lora_B.eq(0).all()


def test_eva_redistributes_ranks_and_keeps_the_rest(tmp_path):
    model = adapted("eva", lora_alpha=6, lora_dropout=0.2, use_dora=True, bias="lora_only")
    before = logits(model)
    done = initialize_from_data(model, padded_batches())
    assert sum(done.ranks.values()) == 28 and not done.unreached
    assert set(done.ranks.values()) > {2} and max(done.ranks.values()) <= 4
    assert largest_error(logits(model), before) < 1e-6
    config = adapter_config(model)
    for path, r in done.ranks.items():
        update = update_of(model, path)
        assert update.r == config.rank_for(path) == r
        assert update.scaling == pytest.approx(config.scaling_for(path)) == pytest.approx(3)
        assert update.drop_probability == 0.2 and update.magnitude is not None
        assert all(p.requires_grad for p in update.parameters())
    save_adapter(randomize_(model), tmp_path)
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert values["init_lora_weights"] is True and "eva_rho" not in values
    again = llama()
    load_adapter(again, tmp_path)
    assert largest_error(logits(again), logits(model.eval())) < LOGITS_TOLERANCE


def test_rslora_keeps_peft_s_alphas():
    model = adapted("eva", lora_alpha=6, use_rslora=True)
    for path, r in initialize_from_data(model, padded_batches()).ranks.items():
        # alpha r / 2, over the root of r
        assert update_of(model, path).scaling == pytest.approx(6 * r / 2 / r**0.5)


def test_a_layer_that_explains_nothing_loses_its_update():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(1)  # so that the second reads the same in every row
    add_adapter(model, LoraConfig(r=1, init_lora_weights="eva", target_modules=["0", "1"]))
    done = initialize_from_data(model, [torch.randn(20, 4)])
    assert done.ranks == {"0": 2, "1": 0}
    assert type(model[1]) is nn.Linear and adapter_names(model) == ("default",)
    assert adapter_config(model).target_modules == ("0",)


def test_lora_ga_on_a_quantized_base_is_that_of_its_dense_twin():
    base = quantized(llama()).eval()
    twin = adapted("lora_ga", dense_twin(base))
    model = adapted("lora_ga", base)
    for each in (model, twin):
        initialize_from_data(each, padded_batches())
    for path in PATHS:
        mine, other = update_of(model, path), update_of(twin, path)
        assert largest_error(mine.lora_B.abs(), other.lora_B.abs()) < 1e-3
        assert mine.lora_B.any() and torch.equal(mine.lora_B, mine.initial_B)


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_nothing_else_is_touched(init):
    model = llama()
    model.model.norm.weight.requires_grad_(True)
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted(init, model)
    model.model.norm.weight.requires_grad_(True)
    model.train()
    model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    state = torch.get_rng_state()
    before = logits(model.eval())
    for name, module in model.named_modules():
        module.training = modes[name]
    initialize_from_data(model, padded_batches())
    assert init == "eva" or torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept.items())
    assert torch.equal(logits(model.eval()), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_classifiers_and_sequence_to_sequence_models():
    labels = {"labels": torch.tensor([0, 1, 1, 0])}
    for build, data in (
        (distilbert, [batch | labels for batch in padded_batches()]),
        (t5, padded_batches(length=8)),
    ):
        for init in ("eva", "lora_ga"):
            model = adapted(init, build(), r=2)
            before = logits(model)
            assert not initialize_from_data(model, data).unreached
            assert largest_error(logits(model), before) < 1e-6


@pytest.mark.parametrize("path", PATHS)
def test_wide_inputs_are_summed_up_nearly_as_well(path, monkeypatch):
    found = []
    for width in (1024, 8):
        monkeypatch.setattr("lorakit.initialization.streamed_components.EXACT_WIDTH", width)
        model = adapted("eva", eva_rho=1, target_modules=["o_proj", "down_proj"])
        initialize_from_data(model, padded_batches())
        found.append(update_of(model, path).lora_A.detach())
    assert (found[0] @ found[1].T).square().sum() / 2 > 0.999


class TwoWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.late = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return self.late(self.used(x)) if len(x) > 6 else self.used(x)


PARTS = ["used", "unused", "late"]


@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_layers_that_no_batch_runs_through_are_reported(init):
    model = TwoWays()
    add_adapter(model, LoraConfig(r=1, init_lora_weights=init, target_modules=PARTS))
    fresh = model.unused.updates["default"].lora_A.clone()
    done = initialize_from_data(
        model, [torch.randn(6, 4), torch.randn(9, 4)], loss=lambda m, x: m(x).square().mean()
    )
    assert done.unreached == ("unused",) and done.ranks["unused"] == 1
    assert torch.equal(model.unused.updates["default"].lora_A, fresh)


def test_what_cannot_be_done_is_said():
    model = adapted("eva")
    with pytest.raises(DataError, match="got no batches"):
        initialize_from_data(model, [])
    with pytest.raises(AdapterNameError, match="No adapter is named 'other'"):
        initialize_from_data(model, padded_batches(), "other")
    merge_adapters(model)
    with pytest.raises(AdapterStateError, match="Cannot initialize an adapter from data while"):
        initialize_from_data(model, padded_batches())
    with pytest.raises(ConfigError, match=r"init_lora_weights='pissa', expected eva or lora_ga"):
        initialize_from_data(adapted("pissa"), padded_batches())
    unlabelled = [{"input_ids": batch["input_ids"]} for batch in padded_batches()]
    with pytest.raises(DataError, match=r"output has no loss.*loss="):
        initialize_from_data(adapted("lora_ga"), unlabelled)

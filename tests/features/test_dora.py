"""DoRA on whole models: groups, fused MLPs and mixed rows give what single layers do."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from lorakit import (
    Adapter,
    LoraConfig,
    adapter_rows,
    add_adapter,
    count_parameters,
    hotswap_adapter,
    set_adapter,
    set_fused_mlp,
)
from lorakit.adapters import save_adapter
from lorakit.errors import AdapterFileError, AdapterMismatchError
from lorakit.layers.executors import fused_mlp
from lorakit.ops import apply_keep_mask
from lorakit.ops.reference import dora_linear_reference
from tiny_models import bert, gpt2, llama, logits, randomize_, t5, tokens, train_steps
from tiny_models.siblings import ungrouped
from tolerances import LOGITS_TOLERANCE, largest_error


def dora(build=llama, seed=7, **options):
    model = build()
    injection = add_adapter(model, LoraConfig(use_dora=True, r=2, **options))
    randomize_(model, seed=seed)
    return model, injection


def assert_each_row_is_its_own(model, names):
    inputs = tokens(model, rows=len(names))
    with torch.no_grad(), adapter_rows(model, names):
        mixed = model(**inputs).logits
    for row, name in enumerate(names):
        set_adapter(model, name)
        with torch.no_grad():
            alone = model(**{key: value[row : row + 1] for key, value in inputs.items()}).logits
        assert largest_error(mixed[row : row + 1], alone) < LOGITS_TOLERANCE, name
    return mixed


def gradients(model):
    torch.manual_seed(0)  # the base of T5 drops as well
    model.zero_grad()
    model(**tokens(model)).logits.square().mean().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("build", [llama, t5])
def test_layers_on_one_activation_compute_together(build, dropout, group_sizes, monkeypatch):
    model, _ = dora(build, lora_dropout=dropout)
    set_fused_mlp(model, False)
    model.train()
    seed = torch.tensor(3)
    monkeypatch.setattr("lorakit.layers.updates.low_rank_update.draw_seed", lambda: seed)
    together = gradients(model)
    assert 3 in group_sizes and 2 in group_sizes
    single = gradients(ungrouped(model))
    assert together.keys() == single.keys() and any("magnitude" in name for name in single)
    for name, gradient in single.items():
        assert largest_error(together[name], gradient) < 1e-5, name


def test_a_result_that_waits_is_not_taken_once_the_magnitude_has_changed():
    model, _ = dora()
    attention = model.model.layers[0].self_attn
    x = torch.randn(2, 3, 16)
    attention.q_proj(x)
    with torch.no_grad():
        attention.k_proj.updates["default"].magnitude.mul_(2)
    got = attention.k_proj(x)
    attention.k_proj.siblings.leave(attention.k_proj)
    assert largest_error(got, attention.k_proj(x)) < LOGITS_TOLERANCE


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("build", [llama, gpt2])
def test_a_fused_mlp_gives_what_its_layers_give(build, dropout, monkeypatch):
    model, _ = dora(build, lora_dropout=dropout, bias="lora_only" if build is gpt2 else "none")
    model.train()
    seed = torch.tensor(3)
    monkeypatch.setattr("lorakit.layers.updates.low_rank_update.draw_seed", lambda: seed)
    runs = []
    original = fused_mlp.low_rank_mlp
    monkeypatch.setattr(fused_mlp, "low_rank_mlp", lambda *a: runs.append(1) or original(*a))
    fused = gradients(model)
    assert runs
    set_fused_mlp(model, False)
    single = gradients(model)
    assert fused.keys() == single.keys()
    for name, gradient in single.items():
        assert largest_error(fused[name], gradient) < 1e-5, name


def test_a_step_of_training_moves_every_magnitude():
    model, _ = dora(task_type="CAUSAL_LM")
    before = {n: p.clone() for n, p in model.named_parameters() if "magnitude" in n}
    losses = train_steps(model, steps=5, learning_rate=0.01)
    assert losses[-1] < losses[0]
    after = dict(model.named_parameters())
    assert all((after[name] != old).all() for name, old in before.items()) and before


def test_magnitudes_are_counted():
    model, injection = dora(target_modules=["q_proj", "up_proj"])
    count = count_parameters(model)
    assert count.trainable == count.lora == injection.lora_parameters
    assert count.lora == 2 * (2 * (16 + 16) + 16) + 2 * (2 * (16 + 32) + 32)
    assert sum(row["parameters"] for row in injection.rows()) == count.lora


@pytest.mark.parametrize("build", [llama, gpt2, bert, t5])
def test_rows_with_and_without_a_magnitude(build):
    model = build()
    options = {"task_type": "TOKEN_CLS"} if build is bert else {}
    for number, name in enumerate("abc"):
        bias = "lora_only" if number == 2 and build in (gpt2, bert) else "none"
        config = LoraConfig(r=1 + number, use_dora=number != 1, bias=bias, **options)
        add_adapter(model, config, name)
        randomize_(model, seed=number)
    mixed = assert_each_row_is_its_own(model.eval(), ["a", None, "b", "b", "c", "a", None])
    assert not torch.allclose(mixed[0], mixed[1])


def test_rows_of_an_embedding_with_a_magnitude():
    model, _ = dora(target_modules=["embed_tokens", "q_proj"])
    assert_each_row_is_its_own(model.eval(), ["default", None, "default"])


def test_rows_train_a_magnitude():
    model, _ = dora()
    inputs = tokens(model)
    with adapter_rows(model, ["default", "default"]):
        model.zero_grad()
        model(**inputs).logits.square().mean().backward()
        mixed = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for name, gradient in gradients(model).items():
        assert largest_error(mixed[name], gradient) < 1e-4, name


def test_rows_drop_the_input_of_the_low_rank_path(monkeypatch):
    seed = torch.tensor(11)
    monkeypatch.setattr("lorakit.layers.updates.low_rank_update.draw_seed", lambda: seed)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4))
    config = LoraConfig(r=2, use_dora=True, lora_dropout=0.4, target_modules="0")
    for name in "ab":
        add_adapter(model, config, name)
    randomize_(model).train()
    layer, x = model[0], torch.randn(4, 3, 6)
    names = ["b", None, "a", "b"]
    with adapter_rows(model, names):
        got = model(x)
    dropped = apply_keep_mask(x, 0.4, seed)
    for row, name in enumerate(names):
        expected = x[row] @ layer.weight.t() + layer.bias
        if name is not None:
            u = layer.updates[name]
            operands = (layer.weight, layer.bias, u.lora_A, u.lora_B, u.scaling, u.magnitude)
            expected = dora_linear_reference(x[row], *operands, dropped[row])
        assert largest_error(got[row], expected) < 1e-5, name


def test_what_is_added_to_the_base_depends_on_it():
    model, _ = dora(target_modules=["q_proj"])
    with pytest.raises(AdapterMismatchError, match="got a magnitude"):
        Adapter.from_model(model).delta_weight("model.layers.0.self_attn.q_proj")


def test_files_come_back_bit_by_bit(tmp_path):
    model, _ = dora(target_modules=["q_proj", "embed_tokens"])
    save_adapter(model, tmp_path)
    loaded = Adapter.load(tmp_path)
    assert loaded.config.use_dora and loaded.magnitudes.keys() == loaded.factors.keys()
    twin = llama()
    add_adapter(twin, loaded)
    assert torch.equal(logits(twin), logits(model))
    assert loaded.count_parameters() == count_parameters(model).trainable


@pytest.mark.parametrize("says", [True, False])
def test_a_configuration_and_tensors_that_do_not_belong_together(says, tmp_path):
    for name, use_dora in (("dora", True), ("plain", False)):
        model = llama()
        add_adapter(model, LoraConfig(use_dora=use_dora, target_modules=["q_proj"]))
        save_adapter(model, tmp_path / name)
    tensors, config = ("plain", "dora") if says else ("dora", "plain")
    file = tmp_path / tensors / "adapter_config.json"
    file.write_text((tmp_path / config / "adapter_config.json").read_text())
    with pytest.raises(AdapterFileError, match=rf"adapter_config.json has use_dora={says}".lower()):
        Adapter.load(tmp_path / tensors)
    with pytest.raises(AdapterFileError, match=rf"use_dora={says}\. The two files do not belong"):
        Adapter.load(tmp_path / tensors, allow_edited_config=True)


def test_a_magnitude_of_another_length_is_refused():
    model, _ = dora(target_modules=["q_proj"])
    adapter = Adapter.from_model(model)
    path = next(iter(adapter.magnitudes))
    others = {key: length for key, length in adapter.magnitudes.items() if key != path}
    with pytest.raises(AdapterMismatchError, match=r"magnitude_vector has shape \(3,\)"):
        add_adapter(llama(), replace(adapter, magnitudes={**others, path: torch.ones(3)}))
    with pytest.raises(AdapterMismatchError, match="expected one for each module with factors"):
        add_adapter(llama(), replace(adapter, magnitudes=others))


def test_hotswapping_takes_the_magnitudes_along():
    model, _ = dora(target_modules=["q_proj"])
    other, _ = dora(seed=9, target_modules=["q_proj"], lora_alpha=5)
    assert largest_error(logits(model), logits(other)) > 0.01
    hotswap_adapter(model, Adapter.from_model(other))
    assert largest_error(logits(model), logits(other)) < LOGITS_TOLERANCE
    without = llama()
    add_adapter(without, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(AdapterMismatchError, match=r"it has no magnitude \(use_dora\) at model"):
        hotswap_adapter(model, Adapter.from_model(without))
    with pytest.raises(AdapterMismatchError, match=r"it has a magnitude \(use_dora\) at model"):
        hotswap_adapter(without, Adapter.from_model(model))


def test_magnitudes_are_kept_in_float32_on_a_half_precision_base():
    model = llama().bfloat16()
    add_adapter(model, LoraConfig(r=2, use_dora=True))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    randomize_(model)
    expected = gradients(model)
    assert all(torch.isfinite(gradient).all() for gradient in expected.values()) and expected

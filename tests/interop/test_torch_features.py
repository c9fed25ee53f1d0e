"""What PyTorch does with whole models: checkpoint, copy, pickle, save."""

import copy
import pickle
import time

import pytest
import torch
from torch import nn

from lorakit import LoraConfig, add_adapter, merge_adapters, set_adapter, unload, unmerge_adapters
from tiny_models import (
    assert_same_gradients,
    bert,
    bloom,
    distilbert,
    gpt2,
    gradients,
    llama,
    logits,
    randomize_,
    t5,
    tokens,
    train_steps,
)
from tiny_models.adapted import with_adapter
from tolerances import largest_error


class TestGradientCheckpointing:
    @pytest.mark.parametrize("build", [llama, gpt2, bert, bloom, t5])
    @pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
    def test_same_gradients_with_frozen_embeddings(self, build, reentrant):
        model = with_adapter(build, lora_dropout=0.3).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        inputs = tokens(model)
        torch.manual_seed(1)
        expected = gradients(model, inputs)
        assert all(gradient.any() for gradient in expected[1].values())
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(1)
        assert_same_gradients(gradients(model, inputs), expected)


MODELS = [llama, gpt2, distilbert, bert, bloom, t5]
BIASES = ["none", "all"]


def round_trips():
    yield "deepcopy", copy.deepcopy
    yield "pickle", lambda model: pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("build", MODELS)
@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("copier", [c for _, c in round_trips()], ids=[n for n, _ in round_trips()])
def test_copies_of_whole_models(build, bias, copier):
    model = with_adapter(build, bias=bias)
    expected = logits(model)
    twin = copier(model)
    assert torch.equal(logits(twin), expected)
    assert [n for n, p in twin.named_parameters() if p.requires_grad] == [
        n for n, p in model.named_parameters() if p.requires_grad
    ]
    train_steps(twin, steps=1)
    assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(twin), expected)
    unload(twin)
    unload(model)
    assert torch.equal(logits(twin), logits(model))
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]


def test_torch_save_and_load_of_a_whole_model(tmp_path):
    model = with_adapter(distilbert, bias="all")
    torch.save(model, tmp_path / "model.pt")
    twin = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(logits(twin), logits(model))
    unload(twin)


def test_a_state_dict_goes_into_a_model_with_the_same_adapter():
    model = with_adapter(distilbert, bias="all")
    twin = with_adapter(distilbert, bias="all")
    randomize_(twin, seed=99)
    assert not torch.equal(logits(twin), logits(model))
    twin.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(logits(twin), logits(model))


def test_a_base_checkpoint_goes_into_an_adapted_model():
    model = with_adapter(llama)
    adapted = logits(model)
    missing, unexpected = model.load_state_dict(llama().state_dict(), strict=False)
    assert unexpected == [] and all(".updates." in name for name in missing)
    assert torch.equal(logits(model), adapted)


@pytest.mark.parametrize("build", [llama, gpt2])
def test_generate(build):
    model = with_adapter(build)
    ids = tokens(model)["input_ids"]
    options = {"max_new_tokens": 4, "do_sample": False, "min_new_tokens": 4}
    ours = model.generate(ids, **options)
    merge_adapters(model)
    assert torch.equal(model.generate(ids, **options), ours)
    unmerge_adapters(model)
    set_adapter(model, None)
    assert model.generate(ids, **options).shape == ours.shape


def test_moving_and_casting_a_model_takes_the_adapter_along():
    model = with_adapter(distilbert, bias="all").double()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    logits(model)
    copy_of = model.distilbert.embeddings.LayerNorm.trained_copies["default"]
    assert copy_of.weight is model.distilbert.embeddings.LayerNorm.weight
    unload(model)


def test_gradients_accumulate_like_one_larger_batch():
    model = with_adapter(llama)
    inputs = tokens(model, rows=4)
    _, whole = gradients(model, inputs)
    model.zero_grad()
    for half in (slice(0, 2), slice(2, 4)):
        out = model(**{k: v[half] for k, v in inputs.items()}).logits
        out.square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert largest_error(parameter.grad, whole[name]) < 1e-4


def test_injecting_into_a_7b_model_on_the_meta_device():
    """Works, and stays far from the minutes a quadratic walk would take; see benchmarks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())
    started = time.perf_counter()
    injection = add_adapter(model, LoraConfig(r=8))
    assert time.perf_counter() - started < 10
    assert len(injection.matches) == 32 * 7
    assert injection.lora_parameters == 8 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lorakit.adapters import adapter_state_dict, merge_and_unload
from lorakit.config import LoraConfig
from lorakit.injection import add_adapter, unload
from lorakit.quantization.small_parameters import (
    keep_small_parameters_in_float32,
    restore_small_parameters,
)


@pytest.fixture
def llama(tiny_llama_dir):
    return AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.bfloat16)


IDS = torch.tensor([[5, 20, 30, 7, 6, 40, 50, 7]])


def test_norms_alone_become_float32(llama):
    changed = keep_small_parameters_in_float32(llama)

    assert len(changed) == 5
    assert "model.layers.0.input_layernorm" in changed and "model.norm" in changed
    small = {name for name, p in llama.named_parameters() if p.dtype == torch.float32}
    assert small == {f"{path}.weight" for path in changed}


def test_bias_beside_a_matrix_keeps_its_dtype(tiny_distilbert_dir):
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_distilbert_dir, dtype=torch.bfloat16
    )

    changed = keep_small_parameters_in_float32(model)

    assert "distilbert.embeddings.LayerNorm" in changed
    assert model.classifier.bias.dtype == torch.bfloat16
    assert model(IDS).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("autocast", [False, True])
def test_model_runs_and_comes_nearer_to_float32(llama, autocast):
    exact = copy.deepcopy(llama).float()
    plain = copy.deepcopy(llama)
    keep_small_parameters_in_float32(llama)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = llama(IDS, labels=IDS)
        output.loss.backward()
        expected, rounded = exact(IDS).logits, plain(IDS).logits

    assert output.logits.dtype == torch.bfloat16
    assert llama.model.norm.weight.grad.dtype == torch.float32
    if not autocast:
        error = (output.logits - expected).norm()
        assert error <= 1.2 * (rounded - expected).norm()
        assert error < 0.05 * expected.norm()


def test_a_norm_computes_in_float32():
    norm = nn.LayerNorm(64).to(torch.bfloat16)
    nn.init.normal_(norm.weight)
    x = torch.randn(4, 64, dtype=torch.bfloat16)
    exact = copy.deepcopy(norm).float()(x.float()).to(torch.bfloat16)
    seen = []
    model = nn.Sequential(norm)
    keep_small_parameters_in_float32(model)
    norm.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))

    output = model(x)

    assert seen == [torch.float32]
    torch.testing.assert_close(output, exact, rtol=0, atol=0)


def test_inputs_by_keyword_and_other_dtypes_pass_through():
    model = nn.Sequential(nn.LayerNorm(8).to(torch.bfloat16))
    keep_small_parameters_in_float32(model)
    norm = model[0]

    assert norm(input=torch.randn(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert norm(torch.randn(2, 8)).dtype == torch.float32  # a residual stream in float32 stays so


def test_undo_gives_back_the_bits_and_leaves_no_trace(llama):
    before = {name: p.clone() for name, p in llama.named_parameters()}
    expected = llama(IDS).logits

    changed = keep_small_parameters_in_float32(llama)
    restored = restore_small_parameters(llama)

    assert set(restored) == set(changed)
    for name, parameter in llama.named_parameters():
        assert parameter.dtype == before[name].dtype
        assert torch.equal(parameter, before[name])
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in llama.modules())
    assert torch.equal(llama(IDS).logits, expected)


def test_twice_is_once_and_float32_models_are_left_alone(llama, tiny_llama_dir):
    keep_small_parameters_in_float32(llama)

    assert keep_small_parameters_in_float32(llama) == ()
    assert keep_small_parameters_in_float32(copy.deepcopy(llama).float()) == ()
    assert all(len(m._forward_hooks) <= 1 for m in llama.modules())


def test_deepcopy_and_pickle_keep_working(llama):
    keep_small_parameters_in_float32(llama)
    expected = llama(IDS).logits

    for other in (copy.deepcopy(llama), pickle.loads(pickle.dumps(llama))):
        assert torch.equal(other(IDS).logits, expected)
        assert len(restore_small_parameters(other)) == 5
        assert other.model.norm.weight.dtype == torch.bfloat16
    assert llama.model.norm.weight.dtype == torch.float32


@pytest.mark.parametrize("bias", ["none", "all"])
def test_adapters_train_on_top_and_their_files_keep_no_trace(tiny_distilbert_dir, bias):
    def trained(small):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            tiny_distilbert_dir, dtype=torch.bfloat16
        )
        if small:
            keep_small_parameters_in_float32(model)
        add_adapter(model, LoraConfig(r=2, bias=bias, task_type="SEQ_CLS"))
        model(IDS, labels=torch.tensor([1])).loss.backward()
        return model

    model, plain = trained(small=True), trained(small=False)

    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert set(adapter_state_dict(model)) == set(adapter_state_dict(plain))
    unload(model)
    restore_small_parameters(model)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_merging_is_not_affected(llama):
    keep_small_parameters_in_float32(llama)
    add_adapter(llama, LoraConfig(r=2, init_lora_weights=False))
    adapted = llama.eval()(IDS).logits

    merge_and_unload(llama)
    restore_small_parameters(llama)

    assert {p.dtype for p in llama.parameters()} == {torch.bfloat16}
    assert (llama(IDS).logits - adapted).norm() < 0.1 * adapted.norm()


def test_gradient_checkpointing_runs(llama):
    keep_small_parameters_in_float32(llama)
    add_adapter(llama, LoraConfig(r=2))
    llama.activation_checkpointing_enable()
    llama.train()

    llama(IDS, labels=IDS).loss.backward()

    gradients = [p.grad for p in llama.parameters() if p.requires_grad]
    assert all(gradient is not None for gradient in gradients)

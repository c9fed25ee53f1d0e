"""A base made ready for a training loop of one's own."""

import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.trainer_utils import validate_quantization_for_training

from lorakit import LoraConfig, add_adapter, prepare_for_training
from tiny_models import llama, train_steps
from tiny_models.quantized import quantized


def test_the_cache_is_off_inside_and_on_again_afterwards():
    model = llama()
    assert model.config.use_cache is True
    with pytest.raises(ZeroDivisionError), prepare_for_training(model) as same:
        assert same is model and model.config.use_cache is False
        raise ZeroDivisionError
    assert model.config.use_cache is True


def test_nothing_of_the_base_is_trained_and_nothing_is_upcast_but_norms_when_asked():
    model = quantized(llama().bfloat16(), compute_dtype="float32")
    with prepare_for_training(model, float32_small_parameters=True):
        add_adapter(model, LoraConfig(r=2))
        trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all(".updates." in name for name in trained)
    assert model.model.norm.weight.dtype == torch.float32
    assert model.model.embed_tokens.weight.dtype == model.lm_head.weight.dtype == torch.bfloat16
    untouched = llama()
    with prepare_for_training(untouched):
        assert not any(p.requires_grad for p in untouched.parameters())


@pytest.mark.parametrize("bits", [4, 8])
def test_transformers_trainer_takes_a_quantized_model(bits, tmp_path):
    quantized(llama(), bits=bits).save_pretrained(tmp_path / "base")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    add_adapter(model, LoraConfig(r=2))
    kind = type(model.hf_quantizer)
    with prepare_for_training(model):
        validate_quantization_for_training(model)
        model.save_pretrained(tmp_path / "checkpoint")  # as a trainer does
    assert type(model.hf_quantizer) is kind
    with pytest.raises(ValueError, match="purely quantized"):
        validate_quantization_for_training(model)


def test_adapters_of_a_part_keep_their_gradients():
    model = llama()
    add_adapter(model.model, LoraConfig(r=2))
    with prepare_for_training(model):
        assert all(p.requires_grad == (".updates." in n) for n, p in model.model.named_parameters())


def test_a_model_that_refuses_checkpointing_stays_as_it_was():
    model = llama()
    model.supports_gradient_checkpointing = False
    with pytest.raises(ValueError, match="checkpointing"):
        prepare_for_training(model, gradient_checkpointing=True).__enter__()
    assert model.config.use_cache is True
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_trains_the_adapters_below_and_ends_with_the_block(reentrant):
    losses = {}
    for checkpointing in (False, True):
        model = quantized(llama()).train()
        with prepare_for_training(
            model, gradient_checkpointing=checkpointing, use_reentrant=reentrant
        ):
            torch.manual_seed(0)
            add_adapter(model, LoraConfig(r=2))
            assert model.is_activation_checkpointing is checkpointing
            losses[checkpointing] = train_steps(model, steps=3)
        assert model.is_activation_checkpointing is False
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    assert losses[True][0] != losses[True][-1]

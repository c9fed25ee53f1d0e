"""Generation on a base in 4 or 8 bits: the tokens are those of the dequantized model."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lorakit
from lorakit.layers.bitsandbytes_storage import dequantize_model
from lorakit.ops.native import compiled_library, quantized_kernels
from tiny_models.quantized import SETTINGS, quantized
from tolerances import LOGITS_TOLERANCE, largest_error


def llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=64,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


def with_adapter(model):
    config = lorakit.LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    torch.manual_seed(1)
    lorakit.add_adapter(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def generated(model):
    prompts = torch.arange(1, 9).view(2, 4)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    return model.generate(prompts, attention_mask=torch.ones_like(prompts), **options)


@pytest.mark.parametrize("kind", SETTINGS)
def test_tokens_are_those_of_the_dequantized_model(kind, monkeypatch):
    if quantized_kernels.load() is None:
        pytest.skip(f"there is no compiled product: {compiled_library.unavailable()}")
    calls, linear = [], quantized_kernels.QuantizedKernels.linear

    def counted(self, x, *rest):
        calls.append(len(x))
        return linear(self, x, *rest)

    monkeypatch.setattr(quantized_kernels.QuantizedKernels, "linear", counted)
    stored = quantized(llama(), **SETTINGS[kind])
    dense = quantized(llama(), **SETTINGS[kind])
    dequantize_model(dense, torch.float32)
    got = generated(with_adapter(stored))
    # The prompt has 8 tokens, then come 11 steps of 2; every linear layer takes part.
    assert calls == [8] * 14 + [2] * (11 * 14)
    logits = torch.stack(got.logits, 1)
    with torch.no_grad():
        expected = with_adapter(dense)(got.sequences[:, :-1]).logits[:, 3:]
    assert largest_error(logits, expected) <= LOGITS_TOLERANCE
    assert torch.equal(got.sequences[:, 4:], logits.argmax(-1))

"""Loading a checkpoint without mapping it, and quantizing piece by piece."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
)

from lorakit import QuantizationConfig
from lorakit.models.pretrained import load_model
from lorakit.quantization import load_quantized
from tiny_models.quantized import SETTINGS


def test_the_loader_reads_without_mapping_files(tiny_llama_dir, monkeypatch):
    from transformers import modeling_utils

    opened, original = [], modeling_utils.safe_open
    monkeypatch.setattr(
        modeling_utils, "safe_open", lambda *a, **k: opened.append(k) or original(*a, **k)
    )
    config = QuantizationConfig(**SETTINGS["nf4"])
    model_config = AutoConfig.from_pretrained(tiny_llama_dir)
    load_quantized(AutoModelForCausalLM, tiny_llama_dir, config, model_config=model_config)
    assert "pread" in {options.get("backend") for options in opened}
    AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    assert opened[-1].get("backend") != "pread"


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["nf4, double", "nf4", "fp4, double", "fp4"])
def test_quantizing_in_pieces_gives_bitsandbytes_bits(name, storage, monkeypatch):
    from bitsandbytes import functional

    from lorakit.quantization import low_memory

    monkeypatch.setattr(low_memory, "_CHUNK", 128)
    weight = torch.randn(24, 40)
    settings = {
        "blocksize": 64,
        "compress_statistics": "double" in name,
        "quant_type": name[:3],
        "quant_storage": storage,
    }
    codes, state = low_memory.quantize_in_pieces(weight, **settings)
    expected_codes, expected = functional.quantize_4bit(weight, **settings)
    assert codes.dtype == storage and torch.equal(
        codes.view(torch.uint8), expected_codes.view(torch.uint8)
    )
    assert state == expected and state.dtype == expected.dtype and state.nested == expected.nested
    back = functional.dequantize_4bit(codes, state)
    assert torch.equal(back, functional.dequantize_4bit(expected_codes, expected))


def test_bitsandbytes_is_its_own_again_after_loading(tiny_llama_dir, monkeypatch):
    from bitsandbytes import functional

    from lorakit.quantization import low_memory

    monkeypatch.setattr(low_memory, "_CHUNK", 256)
    original, calls = functional.quantize_4bit, []
    pieces = low_memory.quantize_in_pieces
    monkeypatch.setattr(
        low_memory, "quantize_in_pieces", lambda *a, **k: calls.append(1) or pieces(*a, **k)
    )
    config = QuantizationConfig(**SETTINGS["nf4"])
    load_model(AutoModelForCausalLM, tiny_llama_dir, quantization=config, seed=0, has_head=False)
    assert len(calls) == 14 and functional.quantize_4bit is original

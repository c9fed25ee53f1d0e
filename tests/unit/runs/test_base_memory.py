"""The memory of a base, from the headers of its files, and what is free for it."""

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from lorakit.errors import ConfigError
from lorakit.runs import base_memory
from lorakit.runs.base_memory import (
    DeviceRoom,
    base_bytes,
    device_room,
    require_room,
    room_without_torch,
)


def loaded_bytes(base, dtype):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return sum(one.nbytes for one in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_bytes_are_those_of_the_loaded_weights(tiny_llama_dir, dtype):
    assert base_bytes(str(tiny_llama_dir), dtype) == loaded_bytes(tiny_llama_dir, dtype)


def test_the_dtype_of_the_files_is_the_default(tiny_llama_dir):
    assert base_bytes(str(tiny_llama_dir)) == loaded_bytes(tiny_llama_dir, "auto")
    assert base_bytes(str(tiny_llama_dir), "auto") == loaded_bytes(tiny_llama_dir, "auto")


def test_four_bits_take_an_eighth_of_the_linear_layers(tiny_llama_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    linear = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    )
    whole = base_bytes(str(tiny_llama_dir), "float32")
    assert base_bytes(str(tiny_llama_dir), "float32", 4) == whole - 4 * linear + linear * 0.5625


def test_pickles_count_by_their_size_and_the_unknown_is_none(tmp_path):
    assert base_bytes(str(tmp_path)) is None
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 123)
    assert base_bytes(str(tmp_path)) == 123
    assert base_bytes("nobody/has-fetched-this") is None
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert base_bytes(str(tmp_path)) is None


def test_what_does_not_fit_is_refused_in_a_sentence():
    require_room("gpt2", None, 10)
    require_room("gpt2", 10, 10)
    with pytest.raises(ConfigError) as raised:
        require_room("gpt2", 14_900_000_000, 9_300_000_000)
    assert str(raised.value) == (
        "Cannot load the base 'gpt2': got 9.3 GB of free memory, expected at least 14.9 GB, which "
        "its weights take. End other programs, or choose a smaller base, or an adapter that was "
        "trained in 4 bits."
    )


def test_without_an_accelerator_the_memory_of_the_machine_counts(monkeypatch):
    monkeypatch.setattr(base_memory, "_GPU_FILES", ())
    monkeypatch.setattr(base_memory.shutil, "which", lambda name: None)
    room = room_without_torch()
    assert room.device == "" and 0 < room.free_bytes <= psutil.virtual_memory().total


def test_the_processor_has_what_is_free_of_the_machine(monkeypatch):
    monkeypatch.setattr(base_memory, "free_memory", lambda: 1000)
    assert device_room("cpu") == DeviceRoom("", 1000)


def test_where_there_may_be_a_gpu_torch_is_asked_for_its_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(base_memory, "_GPU_FILES", (str(tmp_path),))
    assert room_without_torch() is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: "Some GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (7, 9))
    assert device_room("cuda") == DeviceRoom("Some GPU", 7)

"""What vLLM is told about an adapter, and ranks that it does not have."""

import json

import pytest
import torch

from lorakit.adapters import Adapter
from lorakit.config import LoraConfig
from lorakit.errors import AdapterFileError, ConfigError
from lorakit.serving.exporting.vllm_adapter import read_for_vllm


def saved(place, r=8, base="owner/base", **settings):
    factors = {"model.layers.0.self_attn.q_proj": (torch.ones(r, 600), torch.ones(600, r))}
    config = LoraConfig(r=r, target_modules=("q_proj",), task_type="CAUSAL_LM")
    Adapter(config, factors, base_model=base).save(place)
    (place / "lorakit.json").write_text(json.dumps({"task_type": "CAUSAL_LM", **settings}))
    return place


@pytest.mark.parametrize(("r", "max_rank"), [(1, 8), (8, 8), (9, 16), (257, 320), (512, 512)])
def test_the_largest_rank_is_rounded_up_to_one_that_vllm_has(tmp_path, r, max_rank):
    assert read_for_vllm(saved(tmp_path / "a", r), "vLLM").max_rank == max_rank


def test_a_rank_beyond_the_largest_is_refused(tmp_path):
    with pytest.raises(AdapterFileError, match="rank 513, more than 512"):
        read_for_vllm(saved(tmp_path / "a", 513), "vLLM")


@pytest.mark.parametrize(
    ("settings", "options", "note"),
    [
        ({"dtype": "float16"}, {"dtype": "float16"}, "supported models"),
        ({"dtype": "float32"}, {}, "training was in float32"),
        ({"quantization": {"bits": 8}}, {}, "in 8 bits in training"),
        (
            {"quantization": {"bits": 4, "compute_dtype": "bfloat16"}},
            {"dtype": "bfloat16", "quantization": "bitsandbytes"},
            "in 4 bits (nf4)",
        ),
    ],
)
def test_dtype_and_bits_of_the_training_are_passed_on(tmp_path, settings, options, note):
    found = read_for_vllm(saved(tmp_path / "a", **settings), "vLLM")
    assert found.engine_options == {"enable_lora": True, "max_lora_rank": 8, **options}
    assert note in " ".join(found.notes)


def test_a_request_has_the_layout_of_the_training(tmp_path):
    for layout, start in (("alpaca", "Here is an instruction."), ("text", "What can you do?")):
        path, body = read_for_vllm(saved(tmp_path / layout, format=layout), "vLLM").request("m")
        assert path == "/v1/completions" and body["prompt"].startswith(start)


def test_a_request_has_the_system_prompt_of_the_training(tmp_path):
    place = saved(tmp_path / "a", format="messages", system_prompt="Be brief.")
    (place / "chat_template.jinja").write_text("{{ messages }}")
    found = read_for_vllm(place, "vLLM")
    _, body = found.request("m")
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert "does not add the system prompt" in " ".join(found.notes)


def test_a_local_base_is_absolute_and_a_missing_one_is_told(tmp_path):
    found = read_for_vllm(saved(tmp_path / "a", base="./base"), "vLLM")
    assert found.base.startswith("/") and "Change it in the file" in " ".join(found.notes)
    with pytest.raises(ConfigError, match=r"Give --base-model"):
        read_for_vllm(saved(tmp_path / "b", base=None), "vLLM")

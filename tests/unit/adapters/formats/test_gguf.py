"""GGUF adapter files: names, metadata, and the order of rows that llama.cpp expects."""

import dataclasses

import pytest
import torch

from lorakit import Adapter, LoraConfig, add_adapter
from lorakit.adapters import save_gguf
from lorakit.adapters.formats import gguf as gguf_format
from lorakit.adapters.formats.gguf import _ARCHITECTURES, gguf_tensors
from lorakit.errors import (
    AdapterFileError,
    AdapterMismatchError,
    ConfigError,
    OutputExistsError,
)
from tiny_models import gpt2, llama, randomize_
from tiny_models.adapters import adapter_of, random_factors
from tolerances import largest_error

gguf = pytest.importorskip("gguf")


def adapted(build=llama, **config):
    """Return a random adapter and the configuration of its base."""
    model = build()
    add_adapter(model, LoraConfig(**config))
    randomize_(model)
    values = model.config.to_dict() | {"architectures": [type(model).__name__]}
    return Adapter.from_model(model), values


def read(path):
    """Return the metadata and the tensors of a GGUF file, in numpy's order of sizes."""
    reader = gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    return fields, {t.name: torch.tensor(t.data) for t in reader.tensors}


@pytest.mark.parametrize("architecture", _ARCHITECTURES)
@pytest.mark.parametrize("said", [None, True, False])
def test_an_output_head_is_tied_where_the_base_says_so_or_its_kind_is(architecture, said, tmp_path):
    import transformers

    ties = getattr(transformers, architecture).config_class().tie_word_embeddings
    values = {"architectures": [architecture], "num_hidden_layers": 1, "num_attention_heads": 2}
    values |= {} if said is None else {"tie_word_embeddings": said}
    adapter = adapter_of({"lm_head": random_factors(2, 8, 12)})
    has_no_head = architecture in ("GemmaForCausalLM", "Gemma2ForCausalLM")
    if has_no_head or (ties if said is None else said):
        with pytest.raises(AdapterMismatchError, match="No name in GGUF for lm_head"):
            gguf_tensors(adapter, values)
    else:
        assert gguf_tensors(adapter, values).keys() == {
            "output.weight.lora_a",
            "output.weight.lora_b",
        }


class Elsewhere:
    """A tensor that numpy cannot read before it is brought to the CPU."""

    def __init__(self, tensor):
        self.tensor = tensor

    def to(self, device, dtype):
        assert device == "cpu"
        return self.tensor.to(device, dtype)


def test_tensors_are_brought_to_the_cpu(tmp_path, monkeypatch):
    adapter, base = adapted(target_modules=["q_proj"])
    expected = read(save_gguf(adapter, tmp_path / "a.gguf", base))[1]
    original = gguf_format.gguf_tensors
    monkeypatch.setattr(
        gguf_format,
        "gguf_tensors",
        lambda *given: {name: Elsewhere(t) for name, t in original(*given).items()},
    )
    got = read(save_gguf(adapter, tmp_path / "b.gguf", base))[1]
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_the_file_says_what_llama_cpp_asks_for(tmp_path):
    adapter, base = adapted(r=4, lora_alpha=9, use_rslora=True, target_modules="all-linear")
    path = save_gguf(adapter, tmp_path / "new" / "a.gguf", base)
    fields, tensors = read(path)
    assert fields["general.type"] == "adapter"
    assert fields["general.architecture"] == "llama"
    assert fields["adapter.type"] == "lora"
    assert fields["adapter.lora.alpha"] == 4.0  # divided by lora_b's rank it gives 1
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    expected = {
        f"blk.{layer}.{kind}.weight.lora_{factor}"
        for layer in range(2)
        for kind in kinds
        for factor in "ab"
    }
    assert tensors.keys() == expected
    assert tensors["blk.1.ffn_down.weight.lora_a"].shape == (4, 32)
    assert tensors["blk.1.ffn_down.weight.lora_b"].shape == (16, 4)
    for ours, theirs in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v")):
        A, B = (tensors[f"blk.1.{theirs}.weight.lora_{factor}"] for factor in "ab")
        assert largest_error(B @ A, adapter.delta_weight(f"model.layers.1.{ours}")) < 1e-6
    assert [p.name for p in path.parent.iterdir()] == ["a.gguf"]


def rotate_halves(x, angles):
    """Rotate row i with row i + d/2, as transformers does. x: (heads, d, tokens)."""
    first, second = x.chunk(2, dim=1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=1)


def rotate_neighbours(x, angles):
    """Rotate row 2i with row 2i + 1, as llama.cpp does for Llama."""
    first, second = x[:, 0::2], x[:, 1::2]
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([first * cos - second * sin, second * cos + first * sin], 2).flatten(1, 2)


def test_attention_scores_of_permuted_rows_under_the_other_rotation_are_the_same():
    heads, kv_heads, head_dim = 4, 2, 6
    base = {
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
    q, k = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
    adapter = adapter_of(
        {
            q: random_factors(3, 10, heads * head_dim),
            k: random_factors(3, 10, kv_heads * head_dim, seed=1),
        }
    )
    tensors = gguf_tensors(adapter, base)
    tokens = torch.randn(10, 5)
    angles = torch.randn(head_dim // 2, 1) * torch.arange(5)

    def scores(q_weight, k_weight, rotate):
        queries = rotate((q_weight @ tokens).reshape(heads, head_dim, 5), angles)
        keys = rotate((k_weight @ tokens).reshape(kv_heads, head_dim, 5), angles)
        return queries.transpose(1, 2) @ keys.repeat_interleave(heads // kv_heads, 0)

    expected = scores(adapter.delta_weight(q), adapter.delta_weight(k), rotate_halves)
    q_there, k_there = (
        tensors[f"blk.0.attn_{kind}.weight.lora_b"] @ tensors[f"blk.0.attn_{kind}.weight.lora_a"]
        for kind in "qk"
    )
    assert largest_error(scores(q_there, k_there, rotate_neighbours), expected) < 1e-5
    wrong = scores(adapter.delta_weight(q), adapter.delta_weight(k), rotate_neighbours)
    assert largest_error(wrong, expected) > 0.1


def test_other_models_keep_their_rows_and_an_embedding_is_transposed(tmp_path):
    adapter, base = adapted(r=2, target_modules=["embed_tokens", "q_proj"])
    base |= {"architectures": ["Qwen2ForCausalLM"]}
    fields, tensors = read(save_gguf(adapter, tmp_path / "a.gguf", base))
    assert fields["general.architecture"] == "qwen2"
    q = "model.layers.0.self_attn.q_proj"
    assert torch.equal(tensors["blk.0.attn_q.weight.lora_b"], 4 * adapter.factors[q][1])
    assert tensors["token_embd.weight.lora_a"].shape == (32, 2)
    made = tensors["token_embd.weight.lora_b"] @ tensors["token_embd.weight.lora_a"].T
    assert largest_error(made, adapter.delta_weight("model.embed_tokens")) < 1e-6


def test_gpt2(tmp_path):
    adapter, base = adapted(gpt2, target_modules=["c_attn", "c_fc"])
    _, tensors = read(save_gguf(adapter, tmp_path / "a.gguf", base, dtype="float16"))
    assert tensors["blk.1.attn_qkv.weight.lora_b"].dtype == torch.float16
    assert tensors["blk.1.attn_qkv.weight.lora_b"].shape == (48, 8)
    assert tensors["blk.0.ffn_up.weight.lora_a"].shape == (8, 16)


def test_every_architecture_is_one_of_the_package():
    for name in _ARCHITECTURES.values():
        assert gguf.MODEL_ARCH[name] in gguf.MODEL_ARCH_NAMES


def test_what_cannot_be_written_is_refused_and_nothing_is_left(tmp_path):
    adapter, base = adapted(target_modules=["q_proj", "lm_head"])
    target = tmp_path / "a.gguf"
    with pytest.raises(ConfigError, match="got architectures='BloomForCausalLM'"):
        save_gguf(adapter, target, base | {"architectures": ["BloomForCausalLM"]})
    with pytest.raises(ConfigError, match="No num_hidden_layers"):
        save_gguf(adapter, target, {"architectures": base["architectures"]})
    with pytest.raises(AdapterMismatchError, match="No name in GGUF for lm_head"):
        save_gguf(adapter, target, base | {"tie_word_embeddings": True})
    with pytest.raises(AdapterMismatchError, match="expected a multiple of twice the 5 heads"):
        save_gguf(adapter, target, base | {"num_attention_heads": 5})
    with pytest.raises(AdapterMismatchError, match=r"No name in GGUF for blocks\.0"):
        save_gguf(adapter_of({"blocks.0": random_factors(2, 4, 4)}), target, base)
    head = Adapter(adapter.config, adapter.factors, {"score.weight": torch.ones(1, 16)})
    with pytest.raises(AdapterFileError, match="weights trained in full"):
        save_gguf(head, target, base)
    with pytest.raises(OutputExistsError, match="it is a directory"):
        save_gguf(adapter, tmp_path, base)
    assert list(tmp_path.iterdir()) == []


def test_a_base_whose_configuration_does_not_name_its_class(tmp_path):
    """As the base model that comes along and other files have it: the model's type is enough."""
    adapter, values = adapted(target_modules=["q_proj", "v_proj"])
    expected = gguf_tensors(adapter, values)
    for architectures in (None, []):
        found = gguf_tensors(adapter, values | {"architectures": architectures})
        assert found.keys() == expected.keys()
    with pytest.raises(ConfigError, match="got architectures=None, expected one of"):
        gguf_tensors(adapter, values | {"architectures": None, "model_type": "unknown"})


def test_the_base_that_comes_along_is_known(tmp_path):
    import json

    from lorakit.quickstart.model_files import base_model_path

    values = json.loads((base_model_path() / "config.json").read_text())
    width = values["hidden_size"]
    adapter = adapter_of({"model.layers.0.self_attn.q_proj": random_factors(2, width, width)})
    save_gguf(adapter, tmp_path / "a.gguf", values)
    fields, tensors = read(tmp_path / "a.gguf")
    assert fields["general.architecture"] == "llama" and len(tensors) == 2


def test_values_that_float16_cannot_hold_are_refused(tmp_path):
    adapter, config = adapted(target_modules=["q_proj"])
    factors = {path: (A, B * 1e7) for path, (A, B) in adapter.factors.items()}
    large = dataclasses.replace(adapter, factors=factors)
    with pytest.raises(AdapterFileError, match=r"lora_b.* have values too large for float16"):
        save_gguf(large, tmp_path / "a.gguf", config, dtype="float16")
    assert not list(tmp_path.iterdir())
    save_gguf(large, tmp_path / "a.gguf", config)

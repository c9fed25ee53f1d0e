"""Adapters for readers that know r and lora_alpha alone."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lorakit import Adapter
from lorakit.adapters import portable_adapter
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from lorakit.errors import AdapterFileError
from tiny_models.adapters import adapter_of, layered_adapter, random_factors
from tolerances import TOLERANCE, largest_error

CASES = {
    "alpha": {"lora_alpha": 7},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "alphas": {"alpha_pattern": {"v_proj": 5}, "layers_to_transform": [0, 1]},
    "regex": {"target_modules": ".*proj", "lora_alpha": 2},
}


def naive_updates(folder):
    """Return s B A as a reader computes it that knows alpha / r of the file and nothing else."""
    values = json.loads((folder / CONFIG_FILE).read_text())
    tensors = load_file(folder / WEIGHTS_FILE)
    s = values["lora_alpha"] / values["r"]
    return {
        key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): s
        * tensors[key.replace("lora_A", "lora_B")]
        @ A
        for key, A in tensors.items()
        if key.endswith(".lora_A.weight")
    }


@pytest.mark.parametrize("case", CASES)
def test_a_reader_of_alpha_and_r_alone_gets_the_updates(case, tmp_path):
    adapter = layered_adapter(**CASES[case])
    portable_adapter(adapter).save(tmp_path)
    updates = naive_updates(tmp_path)
    assert updates.keys() == adapter.factors.keys()
    for path, update in updates.items():
        assert largest_error(update, adapter.delta_weight(path)) < TOLERANCE[torch.float32]
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert values["lora_alpha"] == values["r"] == 4
    assert not values["use_rslora"] and isinstance(values["target_modules"], list)
    assert values["rank_pattern"] == values["alpha_pattern"] == {}
    assert values["layers_to_transform"] is None


def test_lower_ranks_are_padded_to_the_largest(tmp_path):
    factors = {"a": random_factors(2, 9, 9), "b": random_factors(5, 8, 9)}
    adapter = adapter_of(factors, rank_pattern={"b": 5}, use_rslora=True)
    portable_adapter(adapter).save(tmp_path)
    assert {t.shape[0] for k, t in load_file(tmp_path / WEIGHTS_FILE).items() if "A" in k} == {5}
    for path, update in naive_updates(tmp_path).items():
        assert largest_error(update, adapter.delta_weight(path)) < TOLERANCE[torch.float32]


def test_the_dtype_stays():
    factors = {"m": tuple(t.bfloat16() for t in random_factors(2, 9, 9))}
    made = portable_adapter(adapter_of(factors, lora_alpha=3))
    assert {t.dtype for t in made.factors["m"]} == {torch.bfloat16}
    expected = (1.5 * factors["m"][1].float()).bfloat16()
    assert torch.equal(made.factors["m"][1], expected)


def test_what_cannot_be_expressed_is_refused_by_name():
    plain = layered_adapter()
    path = "model.layers.0.attn.q_proj"
    heads = {"classifier.weight": torch.ones(1), "classifier.bias": torch.ones(1)}
    odd = Adapter(plain.config, plain.factors, heads, frozenset([path]))
    with pytest.raises(AdapterFileError) as caught:
        portable_adapter(odd)
    text = str(caught.value)
    assert "(classifier.weight, classifier.bias) and adapted embeddings" in text and path in text
    embedded = Adapter(plain.config, plain.factors, {}, frozenset([path]))
    assert portable_adapter(embedded, keep_embeddings=True).embeddings == {path}


def test_an_update_that_float16_cannot_hold_with_its_scaling_is_in_float32():
    A, B = random_factors(2, 4, 4)
    small, large = (A.half(), B.half()), (A.half(), (B * 3e4 / B.abs().max()).half())
    adapter = adapter_of({"small": small, "large": large}, lora_alpha=16)
    made = portable_adapter(adapter)
    assert made.factors["small"][1].dtype == torch.float16
    assert made.factors["large"][1].dtype == torch.float32
    for path in adapter.factors:
        error = largest_error(made.delta_weight(path), adapter.delta_weight(path))
        assert error < TOLERANCE[torch.float16]

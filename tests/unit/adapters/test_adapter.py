"""Adapters as values: copied out of models, read, and multiplied out."""

from dataclasses import replace

import pytest
import torch

from lorakit import (
    Adapter,
    LoraConfig,
    add_adapter,
    save_adapter,
)
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from lorakit.errors import AdapterMismatchError
from tiny_models import (
    distilbert,
    gpt2,
    llama,
    logits,
    randomize_,
)
from tiny_models.adapted import CASES, with_adapter
from tiny_models.adapters import random_factors


class TestValue:
    def test_from_model_is_a_copy(self):
        model = with_adapter(distilbert, bias="all")
        adapter = Adapter.from_model(model)
        before = {k: [t.clone() for t in pair] for k, pair in adapter.factors.items()}
        heads = {k: t.clone() for k, t in adapter.replaced.items()}
        randomize_(model, seed=99)
        for path, (A, B) in adapter.factors.items():
            assert torch.equal(A, before[path][0]) and torch.equal(B, before[path][1])
            assert not A.requires_grad
        assert all(torch.equal(adapter.replaced[k], t) for k, t in heads.items())

    @pytest.mark.parametrize("case", CASES)
    def test_model_value_file_and_back_agree(self, case, tmp_path):
        build, options = CASES[case]
        model = with_adapter(build, **options)
        expected = logits(model)
        value = Adapter.from_model(model)
        value.save(tmp_path / "value")
        save_adapter(model, tmp_path / "model")
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            first, second = (tmp_path / d / name for d in ("value", "model"))
            assert first.read_bytes() == second.read_bytes()
        read = Adapter.load(tmp_path / "value")
        assert read.config == value.config and read.embeddings == value.embeddings
        assert list(read.factors) == sorted(read.factors, key=list(read.factors).index)
        for adapter in (value, read):
            other = build()
            add_adapter(other, adapter)
            assert torch.equal(logits(other), expected)

    def test_delta_weight_is_what_a_merge_adds(self, tmp_path):
        model = with_adapter(
            gpt2,
            target_modules=["wte", "c_attn"],
            use_rslora=True,
            alpha_pattern={"wte": 7},
            rank_pattern={"0.attn.c_attn": 3},
        )
        adapter = Adapter.from_model(model)
        assert set(adapter.factors) == {
            "transformer.wte",
            "transformer.h.0.attn.c_attn",
            "transformer.h.1.attn.c_attn",
        }
        for path in adapter.factors:
            layer = model.get_submodule(path)
            base = layer.weight.detach().clone()
            delta = adapter.delta_weight(path)
            assert delta.dtype == torch.float32
            layer.merge()
            assert torch.equal(layer.weight, base + delta.T)
            layer.unmerge()
        assert adapter.delta_weight("transformer.wte").shape == (16, 32)

    def test_delta_weight_of_another_module(self):
        adapter = Adapter.from_model(with_adapter(llama, target_modules=["q_proj"]))
        with pytest.raises(AdapterMismatchError) as caught:
            adapter.delta_weight("model.layers.0.self_attn.v_proj")
        assert str(caught.value) == (
            "The adapter has no update for 'model.layers.0.self_attn.v_proj'. It adapts: "
            "model.layers.0.self_attn.q_proj, model.layers.1.self_attn.q_proj."
        )

    def test_counts_its_parameters(self):
        from lorakit import count_parameters

        for options in ({}, {"bias": "all"}):
            model = with_adapter(distilbert, **options)
            adapter = Adapter.from_model(model)
            assert adapter.count_parameters() == count_parameters(model).trainable


def test_magnitudes_and_the_configuration_have_to_agree():
    factors = {path: random_factors(2, 4, 4) for path in ("q", "v")}
    lengths = {path: torch.ones(4) for path in factors}
    plain, dora = LoraConfig(r=2), LoraConfig(r=2, use_dora=True)
    assert Adapter(dora, factors, magnitudes=lengths).magnitudes
    for config, magnitudes, said in (
        (plain, lengths, "use_dora=False: got one at q, v, expected none"),
        (dora, {}, "use_dora=True: got none at q, v, expected one for each module"),
        (dora, {"q": lengths["q"]}, "use_dora=True: got none at v"),
        (dora, lengths | {"k": lengths["q"]}, "use_dora=True: got one at k"),
    ):
        with pytest.raises(AdapterMismatchError, match=said):
            Adapter(config, factors, magnitudes=magnitudes)
    with pytest.raises(AdapterMismatchError):
        replace(Adapter(dora, factors, magnitudes=lengths), config=plain)

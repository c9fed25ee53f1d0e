"""Adapters on a base that they were not made for."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorakit import (
    Adapter,
    LoraConfig,
    add_adapter,
    load_adapter,
    save_adapter,
    unload,
)
from lorakit.adapters.peft_files.files import WEIGHTS_FILE
from lorakit.errors import (
    AdapterMismatchError,
)
from lorakit.injection.selection.plan_from_tensors import plan_from_tensors
from tiny_models import (
    TinyNet,
    assert_untouched,
    distilbert,
    gpt2,
    llama,
    snapshot,
)
from tiny_models.adapted import with_adapter


class TestWrongBase:
    def refused(self, model, path, error=AdapterMismatchError):
        before = snapshot(model)
        with pytest.raises(error) as caught:
            load_adapter(model, path)
        assert_untouched(model, before)
        return str(caught.value)

    def test_another_width_names_the_first_key_and_both_shapes(self, tmp_path):
        save_adapter(with_adapter(TinyNet, target_modules=["up"]), tmp_path)
        assert self.refused(TinyNet(width=6), tmp_path) == (
            "The adapter was made for another base than this TinyNet: layers.0.up.lora_A has shape "
            "(2, 8), but the base's layer needs (2, 6). (1 more such problems) Load the base the "
            "adapter names, or another adapter."
        )

    def test_fewer_layers(self, tmp_path):
        save_adapter(with_adapter(TinyNet, target_modules=["up"]), tmp_path)
        text = self.refused(TinyNet(layers=1), tmp_path)
        assert "the base has no module 'layers.1.up', which the adapter adapts." in text
        assert "Did you mean 'layers.0.up'?" in text

    def test_more_layers(self, tmp_path):
        # Every key fits, but the third layer would silently stay as it is.
        save_adapter(with_adapter(TinyNet, target_modules=["up"]), tmp_path)
        text = self.refused(TinyNet(layers=3), tmp_path)
        assert "the adapter has no tensors for 'layers.2.up', which its target_modules select" in (
            text
        )

    def test_a_key_was_lost(self, tmp_path):
        save_adapter(with_adapter(llama, bias="none"), tmp_path)
        tensors = load_file(tmp_path / WEIGHTS_FILE)
        lost = [k for k in tensors if "layers.1.mlp.up_proj" in k]
        for key in lost:
            del tensors[key]
        save_file(tensors, tmp_path / WEIGHTS_FILE)
        assert "'model.layers.1.mlp.up_proj'" in self.refused(llama(), tmp_path)

    def test_another_architecture(self, tmp_path):
        save_adapter(with_adapter(llama), tmp_path)
        text = self.refused(gpt2(), tmp_path)
        assert "the base has no module 'model.layers.0.mlp.down_proj'" in text
        assert "more such problems" in text

    def test_another_number_of_labels(self, tmp_path):
        save_adapter(with_adapter(distilbert), tmp_path)
        text = self.refused(distilbert(num_labels=5), tmp_path)
        assert "classifier.bias has shape (2,), but the base's is (5,). (1 more" in text

    def test_a_base_without_the_head(self, tmp_path):
        save_adapter(with_adapter(distilbert), tmp_path)
        text = self.refused(distilbert("DistilBertModel"), tmp_path)
        assert "made for another base than this DistilBertModel: the base has no" in text

    def test_a_lost_head(self, tmp_path):
        save_adapter(with_adapter(distilbert), tmp_path)
        tensors = load_file(tmp_path / WEIGHTS_FILE)
        del tensors["base_model.model.classifier.bias"]
        save_file(tensors, tmp_path / WEIGHTS_FILE)
        assert "the adapter has no 'classifier.bias', which its configuration trains." in (
            self.refused(distilbert(), tmp_path)
        )

    def test_a_lost_head_of_two(self, tmp_path):
        save_adapter(with_adapter(distilbert), tmp_path)
        tensors = load_file(tmp_path / WEIGHTS_FILE)
        save_file(
            {k: t for k, t in tensors.items() if "pre_classifier" not in k}, tmp_path / WEIGHTS_FILE
        )
        assert "pre_classifier" in self.refused(distilbert(), tmp_path)

    @pytest.mark.parametrize("bias", ["lora_only", "all"])
    def test_lost_biases(self, bias, tmp_path):
        save_adapter(with_adapter(gpt2, target_modules=["c_attn"], bias=bias), tmp_path)
        tensors = load_file(tmp_path / WEIGHTS_FILE)
        del tensors["base_model.model.transformer.h.0.attn.c_attn.base_layer.bias"]
        save_file(tensors, tmp_path / WEIGHTS_FILE)
        text = self.refused(gpt2(), tmp_path)
        assert "the adapter has no 'transformer.h.0.attn.c_attn.bias'" in text

    def test_a_tensor_without_a_place(self, tmp_path):
        save_adapter(with_adapter(llama), tmp_path)
        tensors = load_file(tmp_path / WEIGHTS_FILE)
        tensors["base_model.model.lm_heda.weight"] = torch.zeros(2, 3)
        save_file(tensors, tmp_path / WEIGHTS_FILE)
        text = self.refused(llama(), tmp_path)
        assert "the base has no place for 'lm_heda.weight' (2, 3)." in text

    def test_a_module_that_cannot_be_adapted(self, tmp_path):
        save_adapter(with_adapter(TinyNet, target_modules=["up"]), tmp_path)
        model = TinyNet()
        model.layers[0]["up"] = torch.nn.Bilinear(8, 8, 16)
        text = self.refused(model, tmp_path)
        assert "'layers.0.up' is a Bilinear, which cannot be adapted." in text

    def test_a_mismatch_in_a_large_model_is_reported_quickly(self, tmp_path):
        """The nearest name is looked for once, not for each of hundreds of keys."""
        import time

        model = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(600))
        add_adapter(model, LoraConfig(r=1))
        adapter = Adapter.from_model(model)
        other = torch.nn.ModuleDict({"inner": torch.nn.ModuleList(model)})
        unload(model)
        started = time.perf_counter()
        with pytest.raises(AdapterMismatchError, match="more such problems"):
            add_adapter(other, adapter)
        assert time.perf_counter() - started < 5


def test_base_weights_in_the_file_must_be_those_of_the_base():
    model = gpt2()
    add_adapter(model, LoraConfig(r=2, target_modules=["c_attn"]))
    adapter = Adapter.from_model(model)
    wte = gpt2().transformer.wte.weight.detach()
    for path, weight, said in (
        ("transformer.wte", wte + 1, r"wte\.weight in the adapter's file differs from the base's"),
        ("transformer.wte", wte[:, :4], r"wte\.weight has shape \(32, 4\) in the adapter's file"),
        ("transformer.wet", wte, r"no place for 'transformer\.wet\.weight' .* 'transformer\.wte'"),
    ):
        with pytest.raises(AdapterMismatchError, match=said):
            plan_from_tensors(gpt2(), replace(adapter, base_weights={path: weight}))
    plan = plan_from_tensors(gpt2(), replace(adapter, base_weights={"transformer.wte": wte}))
    assert [site.path for site in plan.sites] == list(adapter.factors)


def test_a_convolution_of_another_kernel():
    model = nn.Sequential(nn.Conv1d(4, 4, 3))
    add_adapter(model, LoraConfig(r=2, target_modules=["0"]))
    said = r"0\.lora_A is for a convolution of 4 channels by \[3\], but .* by \[6\] in 2 groups"
    with pytest.raises(AdapterMismatchError, match=said):
        plan_from_tensors(nn.Sequential(nn.Conv1d(4, 4, 6, groups=2)), Adapter.from_model(model))

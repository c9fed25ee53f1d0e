"""Updates, copies and trained tokens that no model carries yet."""

from dataclasses import replace

import pytest
import torch

from lorakit import Adapter, LoraConfig
from lorakit.adapters.operations.reparametrize import outline_of
from lorakit.injection.new_parts import (
    load_companions_,
    new_copies,
    new_update,
    trained_dtype,
)
from lorakit.injection.selection.plan import plan_from_config
from lorakit.injection.selection.plan_from_tensors import plan_from_tensors
from tiny_models import distilbert, llama
from tiny_models.adapted import with_adapter
from tiny_models.trained_tokens import llama as llama_with_tokens
from tiny_models.trained_tokens import with_tokens


@pytest.mark.parametrize(
    ("base", "trained"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_trained_parameters_have_at_least_single_precision(base, trained):
    assert trained_dtype(base) == trained


def test_an_update_has_the_shapes_of_its_layer_and_its_variants():
    model = llama()
    plan = plan_from_config(model, LoraConfig(r=3, target_modules=["q_proj"], use_dora=True))
    site = plan.sites[0]
    update = new_update(site, plan, torch.bfloat16, None)
    out_features, in_features = site.module.weight.shape
    shapes = {name: tuple(p.shape) for name, p in update.named_parameters()}
    assert shapes["lora_A"] == (3, in_features) and shapes["lora_B"] == (out_features, 3)
    assert shapes["magnitude"] == (out_features,)
    assert {p.dtype for p in update.parameters()} == {torch.bfloat16}


def test_companions_are_those_of_the_file():
    adapter = Adapter.from_model(with_adapter(llama, seed=3, use_dora=True))
    plan = plan_from_tensors(llama(), adapter)
    site = plan.sites[0]
    update = new_update(site, plan, None, adapter)
    load_companions_(update, site.path, adapter)
    assert torch.equal(update.magnitude, adapter.companions[f"{site.path}.magnitude"])


def test_a_head_is_copied_and_the_base_s_stays():
    adapter = Adapter.from_model(with_adapter(distilbert, seed=3))
    model = distilbert()
    copies = new_copies(plan_from_tensors(model, adapter), None, adapter)
    for path, copy in copies.items():
        assert torch.equal(copy.weight, adapter.replaced[f"{path}.weight"])
        assert not torch.equal(model.get_submodule(path).weight, copy.weight)
    assert copies


def test_a_head_is_copied_from_tensors_without_values():
    adapter = Adapter.from_model(with_adapter(distilbert, seed=3))
    outline = outline_of(adapter, adapter.config, torch.device("meta"))
    copies = new_copies(plan_from_tensors(distilbert().to("meta"), outline), None, outline)
    assert copies and all(copy.weight.is_meta for copy in copies.values())


def test_tokens_of_tied_modules_share_their_rows():
    adapter = Adapter.from_model(with_tokens(llama_with_tokens, seed=3))
    copies = new_copies(plan_from_tensors(llama_with_tokens(), adapter), None, adapter)
    (rows,) = {id(copy.rows): copy.rows for copy in copies.values()}.values()
    assert torch.equal(rows, next(iter(adapter.trained_tokens.values())))


@pytest.mark.parametrize("are_alike", [True, False])
def test_copies_of_tied_modules_are_tied_if_the_adapter_s_values_are_equal(are_alike):
    def build():
        return llama(tie_word_embeddings=True)

    options = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}
    adapter = Adapter.from_model(with_adapter(build, seed=3, **options))
    if not are_alike:
        head = {"lm_head.weight": adapter.replaced["lm_head.weight"] + 1}
        adapter = replace(adapter, replaced={**adapter.replaced, **head})
    copies = new_copies(plan_from_tensors(build(), adapter), None, adapter)
    weights = {path: copy.weight for path, copy in copies.items()}
    assert (weights["lm_head"] is weights["model.embed_tokens"]) == are_alike
    for path, weight in weights.items():
        assert torch.equal(weight, adapter.replaced[f"{path}.weight"])

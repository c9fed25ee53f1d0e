"""Equal content has one hash, and whatever affects outputs changes it."""

from dataclasses import replace

import pytest
import torch

from lorakit import Adapter
from lorakit.serving.store.content_hash import content_hash
from tiny_models import distilbert, gpt2, llama
from tiny_models.adapted import with_adapter
from tiny_models.adapters import layered_adapter
from tiny_models.trained_tokens import with_tokens

WITH_EVERYTHING = {
    "plain": lambda: with_adapter(llama),
    "dora": lambda: with_adapter(llama, use_dora=True),
    "head and biases": lambda: with_adapter(distilbert, bias="all"),
    "embedding": lambda: with_adapter(gpt2, target_modules=["wte"]),
    "tokens": lambda: with_tokens(llama),
}


@pytest.mark.parametrize("build", WITH_EVERYTHING.values(), ids=WITH_EVERYTHING)
def test_files_and_model_give_the_same(build, tmp_path):
    adapter = Adapter.from_model(build())
    adapter.save(tmp_path / "a")
    expected = content_hash(Adapter.load(tmp_path / "a"))
    assert len(expected) == 64
    Adapter.load(tmp_path / "a").save(tmp_path / "b")
    assert content_hash(Adapter.load(tmp_path / "b")) == expected


@pytest.mark.parametrize("build", WITH_EVERYTHING.values(), ids=WITH_EVERYTHING)
def test_one_changed_number_changes_it(build):
    adapter = Adapter.from_model(build())
    before = content_hash(adapter)
    tensors = [t for pair in adapter.factors.values() for t in pair]
    tensors += [*adapter.magnitudes.values(), *adapter.replaced.values()]
    tensors += [*adapter.trained_tokens.values()]
    hashes = {before}
    for tensor in tensors:
        tensor.view(-1)[0] += 1
        hashes.add(content_hash(adapter))
        tensor.view(-1)[0] -= 1
    assert len(hashes) == 1 + len(tensors)


def test_settings_that_act_change_it_and_those_of_training_do_not():
    adapter = layered_adapter()
    before = content_hash(adapter)

    def changed(**update):
        return content_hash(replace(adapter, config=adapter.config.model_copy(update=update)))

    assert changed(lora_dropout=0.5) == changed(task_type="CAUSAL_LM") == before
    assert len({changed(lora_alpha=9), changed(use_rslora=True), before}) == 3


def test_the_order_of_modules_and_the_layout_in_memory_do_not_matter():
    adapter = layered_adapter()
    turned = dict(reversed(adapter.factors.items()))
    assert content_hash(replace(adapter, factors=turned)) == content_hash(adapter)
    strided = {p: (A.t().contiguous().t(), B) for p, (A, B) in adapter.factors.items()}
    assert content_hash(replace(adapter, factors=strided)) == content_hash(adapter)


def test_a_dtype_is_part_of_it():
    adapter = layered_adapter()
    half = {p: (A.to(torch.bfloat16), B) for p, (A, B) in adapter.factors.items()}
    assert content_hash(replace(adapter, factors=half)) != content_hash(adapter)

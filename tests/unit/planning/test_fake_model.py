"""The model of a recipe on fake tensors."""

import json

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from lorakit.errors import (
    QuantizationError,
    TargetError,
)
from lorakit.planning import plan
from lorakit.planning.fake_model import build_fake_model
from lorakit.planning.fake_world import FakeWorld
from lorakit.training.setup import prepare
from lorakit.training.tasks import task_for
from tiny_models.quantized import FOUR

DTYPES = {"the base's": {}, "asked for": {"dtype": "bfloat16"}, "of 4 bits": {"quantization": FOUR}}
DTYPES |= {"of norms": {"dtype": "bfloat16", "float32_small_parameters": True}}
KINDS = {
    **DTYPES,
    "new tokens": {"data.new_tokens": ["colour is the"]},
    "DoRA": {"lora.use_dora": True},
}


def fake_model(recipe, **options):
    task, device, world = task_for(recipe.task), torch.device("cpu"), FakeWorld()
    tokenizer = task.load_tokenizer(recipe)
    return build_fake_model(*(recipe, task, None, tokenizer, device, device, world), **options)


def sizes(model):
    return {
        name: (
            type(model.get_submodule(name.rpartition(".")[0])),
            p.shape,
            p.dtype,
            p.requires_grad,
        )
        for name, p in model.named_parameters()
    }


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_its_parameters_are_those_of_the_model_that_is_trained(recipe, changes):
    made = recipe(**changes)
    model = fake_model(made)
    assert sizes(model) == sizes(prepare(made, lambda *event: None).model)
    assert all(isinstance(p.data, FakeTensor) for p in model.parameters())


def test_all_of_a_quantized_base_is_trained_dense_without_an_adapter(recipe):
    model = fake_model(recipe(quantization=FOUR), trains_all=True)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert not any("updates" in name for name, _ in model.named_parameters())


def test_a_checkpoint_that_does_not_say_its_dtype_has_that_of_its_weights(recipe, tmp_path):
    made = recipe()
    base = AutoModelForCausalLM.from_pretrained(made.model, dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(made.model).save_pretrained(tmp_path / "base")
    config = tmp_path / "base" / "config.json"
    values = json.loads(config.read_text())
    del values["dtype"]
    config.write_text(json.dumps(values))
    model = fake_model(recipe(model=str(tmp_path / "base")))
    assert {p.dtype for n, p in model.named_parameters() if "lora_" not in n} == {torch.bfloat16}


def test_what_an_update_is_measured_from_takes_memory_and_a_place_in_the_file(recipe):
    plain = plan(recipe())
    for init in ("pissa", "pissa_niter_4", "olora", "lora_ga"):
        offset = plan(recipe(**{"lora.init_lora_weights": init}))
        assert offset.trainable == plain.trainable, init
        assert offset.adapter_bytes == plain.adapter_bytes, init
        assert offset.base_weights_bytes - plain.base_weights_bytes == plain.adapter_bytes, init
        assert offset.optimizer_bytes == plain.optimizer_bytes, init
        header = 2000
        factors = 4 * plain.trainable
        added = offset.adapter_file_bytes - plain.adapter_file_bytes
        assert 0 <= added - factors < header, init
        assert offset.peak_bytes > plain.peak_bytes, init


def test_others_take_what_an_ordinary_adapter_takes(recipe):
    plain = plan(recipe(quantization=FOUR))
    for init in ("eva", "loftq", "pissa"):
        other = plan(recipe(quantization=FOUR, **{"lora.init_lora_weights": init}))
        kept = plain.adapter_bytes if init == "pissa" else 0
        assert other.base_weights_bytes - plain.base_weights_bytes == kept, init
        assert other.trainable == plain.trainable, init


def test_a_plan_tells_what_training_would_refuse(recipe):
    with pytest.raises(QuantizationError, match="not quantized"):
        plan(recipe(**{"lora.init_lora_weights": "loftq"}))


def test_a_pattern_that_matches_nothing(recipe):
    with pytest.raises(TargetError, match="Did you mean 'q_proj'"):
        plan(recipe(**{"lora.target_modules": ["q_porj"]}))

"""A run on fake tensors: what its parts are, and a step that needs values."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from lorakit.errors import PlanError
from lorakit.planning import build_fake_run, plan, plan_of


def test_it_has_what_the_first_step_needs_and_no_values(recipe):
    run = build_fake_run(recipe(dtype="auto"), device="cpu")
    assert run.recipe.dtype in ("float32", "bfloat16") and run.dtype_note.endswith(".")
    assert run.batch["input_ids"].shape[0] == run.trainer.args.per_device_train_batch_size
    assert all(isinstance(weight, FakeTensor) for weight in run.model.parameters())
    assert (run.device, run.tensors_on) == (torch.device("cpu"),) * 2


def test_a_plan_of_it_is_the_plan_of_its_recipe(recipe):
    made = recipe()
    ours, theirs = plan_of(build_fake_run(made), 10**12), plan(made, memory=10**12)
    assert ours.peak_bytes == theirs.peak_bytes and ours.notes == theirs.notes


def test_a_step_that_fails_is_one_sentence(config_dir, recipe):
    model = config_dir(num_key_value_heads=3)
    with pytest.raises(PlanError, match="The step of this LlamaForCausalLM fails on fake tensors"):
        plan(recipe(model=model, **{"data.train": "your/data", "data.max_length": 8}))

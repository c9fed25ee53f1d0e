"""A plan against the real step: the same storages, counted on real tensors."""

import json
import math

import pytest
import torch

import lorakit
from fixtures.data import CONFIG
from lorakit.errors import (
    ConfigError,
    PlanError,
)
from lorakit.ops.quantized import dense
from lorakit.planning import plan
from lorakit.planning.measurement import count_step
from lorakit.quantization.devices import has_dtype
from tiny_models.quantized import EIGHT, FOUR, four_bit_weight

SAVED_TOLERANCE = 0.02
PEAK_TOLERANCE = 0.10
TASKS = ("CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM")
SETTINGS = {
    "dropout": {"lora.lora_dropout": 0.1},
    "checkpointing": {"training.activation_checkpointing": True},
    "reentrant": {
        "training.activation_checkpointing": True,
        "training.activation_checkpointing_kwargs": {"use_reentrant": True},
    },
    "accumulated": {"training.gradient_accumulation_steps": 4},
    "4 bits": {"quantization": FOUR},
    "4 bits, one level of scales": {"quantization": {**FOUR, "double_quant": False}},
    "8 bits": {"quantization": EIGHT},
    "packed": {"training.packing": True},
    "unclipped": {"training.max_grad_norm": 0.0},
    "adafactor": {"training.optim": "adafactor"},
    "8-bit optimizer": {"training.optim": "adamw_bnb_8bit"},
    "trained head": {"lora.modules_to_save": ["lm_head"]},
    "bfloat16": {"dtype": "bfloat16"},
    "DoRA": {"lora.use_dora": True},
    "DoRA with dropout": {"lora.use_dora": True, "lora.lora_dropout": 0.1},
    "DoRA in 4 bits": {"lora.use_dora": True, "quantization": FOUR},
    "LoRA+": {"training.lora_plus_ratio": 16},
    "LoRA-FA": {"lora.freeze_lora_a": True},
    "smoothed": {"training.label_smoothing_factor": 0.1},
}


def compare(recipe):
    """Assert that a recipe's plan is what its real step takes; return the plan."""
    planned = plan(recipe, device="cpu")
    counted = count_step(recipe)
    assert planned.base_weights_bytes == pytest.approx(counted.base_weights_bytes, rel=1e-3)
    assert planned.adapter_bytes == counted.adapter_bytes
    assert planned.gradient_bytes == counted.gradient_bytes
    assert planned.optimizer_bytes == counted.optimizer_bytes
    saved = counted.saved_activation_bytes
    assert planned.saved_activation_bytes == pytest.approx(saved, rel=SAVED_TOLERANCE)
    assert planned.peak_bytes == pytest.approx(counted.peak_bytes, rel=PEAK_TOLERANCE)
    return planned


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_planned_as_it_runs(recipe, task):
    compare(recipe(task))


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_planned_as_it_runs(recipe, setting):
    compare(recipe(**SETTINGS[setting]))


def test_buffers_that_a_larger_model_left_are_not_counted(recipe):
    weight, _ = four_bit_weight(torch.randn(512, 512))
    dense(weight, torch.float32)
    compare(recipe(quantization=FOUR))


@pytest.mark.skipif(
    not has_dtype(torch.bfloat16, torch.device("cpu")), reason="slow without bf16 instructions"
)
@pytest.mark.parametrize("task", TASKS)
def test_mixed_precision_is_planned_as_it_runs(recipe, task):
    compare(recipe(task, **{"training.bf16": True}))


def test_batches_have_the_padding_that_they_have_in_the_run(recipe):
    def added_by_two_tokens(**changes):
        plans = [plan(recipe(**{"data.max_length": n, **changes})) for n in (8, 10)]
        return plans[1].peak_bytes - plans[0].peak_bytes

    # In bfloat16 both are padded to 32 tokens, and differ by the labels that count.
    assert 0 <= 10 * added_by_two_tokens(dtype="bfloat16") < added_by_two_tokens()


def test_experts_are_planned_as_they_run(recipe, tiny_llama_dir, tmp_path):
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    sizes = {key: value for key, value in CONFIG.items() if key != "model_type"}
    config = Qwen3MoeConfig(
        **{**sizes, "vocab_size": len(tokenizer)},
        num_key_value_heads=2,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
    )
    folder = str(tmp_path / "experts")
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    compare(recipe(model=folder))


def test_the_full_method_trains_everything(recipe):
    full = plan(recipe(), method="full")
    assert full.trainable == full.total
    assert full.gradient_bytes == 4 * full.total
    assert full.optimizer_bytes >= 8 * full.total


def test_steps_and_tokens_of_the_run_and_its_file(recipe):
    made = recipe(**{"training.num_train_epochs": 2, "training.gradient_accumulation_steps": 2})
    planned = plan(made)
    rows = 24 - 6  # a quarter is held out
    assert planned.updates == 2 * math.ceil(math.ceil(rows / 4) / 2)
    assert planned.batches == 2 * planned.updates
    assert planned.epochs == made.training["num_train_epochs"]
    result = lorakit.train(made)
    assert result.steps == planned.updates
    file = result.adapter_path / "adapter_model.safetensors"
    assert planned.adapter_file_bytes == file.stat().st_size
    from lorakit.training import RunDirectory

    seen = [
        row["num_tokens"] for row in RunDirectory(result.run_dir).metrics() if "num_tokens" in row
    ]
    assert planned.tokens == pytest.approx(max(seen), rel=0.02)


def test_planning_leaves_no_trace(recipe, tmp_path):
    made = recipe(**{"training.optim": "memory_mapped_adamw"})
    before = torch.get_rng_state()
    planned = plan(made)
    assert torch.equal(torch.get_rng_state(), before)
    assert not (tmp_path / "run").exists()
    assert planned.optimizer_bytes == 0  # it is in a file
    torch.zeros(3).sum().item()  # no fake mode is left on


def test_it_fits_or_it_does_not_and_is_json(recipe):
    made = recipe()
    small = plan(made, memory="1MB")
    assert small.fits is False
    assert plan(made, memory=2 * small.needed_bytes).fits is True
    values = json.loads(json.dumps(small.to_dict()))
    assert {
        *("trainable", "total", "base_weights_bytes", "adapter_bytes", "gradient_bytes"),
        *("optimizer_bytes", "saved_activation_bytes", "peak_bytes", "adapter_file_bytes", "fits"),
    } <= values.keys()


# ---- bad input ----


@pytest.mark.parametrize("memory", ["much", "16XB", "-3GB", "", "0GB"])
def test_a_memory_that_is_none(recipe, memory):
    with pytest.raises(ConfigError, match=f"Cannot read the memory: got '{memory}'"):
        plan(recipe(), memory=memory)


def test_a_device_that_is_none(recipe):
    with pytest.raises(ConfigError, match="device"):
        plan(recipe(), device="abacus")


def test_a_forward_that_looks_at_the_weights(recipe, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    original = LlamaMLP.forward

    def looking(self, x):
        return original(self, x) if x.max() > 0 else x

    monkeypatch.setattr(LlamaMLP, "forward", looking)
    with pytest.raises(PlanError, match="needs the result of 'local_scalar_dense'"):
        plan(recipe())

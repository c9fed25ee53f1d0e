"""A plan against the real step: the same storages, counted on real tensors."""

import json
import math
import subprocess

import pytest
import torch

import lorakit
from forked import Program
from lorakit.errors import (
    ConfigError,
    MissingFileError,
    PlanError,
    QuantizationError,
    TargetError,
)
from lorakit.planning import plan
from lorakit.planning import separate_process as apart
from lorakit.planning.measurement import count_step
from lorakit.quantization.devices import has_dtype

SAVED_TOLERANCE = 0.02
PEAK_TOLERANCE = 0.10
TASKS = ("CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM")
FOUR_BITS = {"bits": 4, "compute_dtype": "float32"}
SETTINGS = {
    "plain": {},
    "dropout": {"lora.lora_dropout": 0.1},
    "checkpointing": {"training.activation_checkpointing": True},
    "reentrant": {
        "training.activation_checkpointing": True,
        "training.activation_checkpointing_kwargs": {"use_reentrant": True},
    },
    "accumulated": {"training.gradient_accumulation_steps": 4},
    "4 bits": {"quantization": FOUR_BITS},
    "4 bits, one level of scales": {"quantization": {**FOUR_BITS, "double_quant": False}},
    "8 bits": {"quantization": {"bits": 8, "compute_dtype": "float32"}},
    "packed": {"training.packing": True},
    "unclipped": {"training.max_grad_norm": 0.0},
    "adafactor": {"training.optim": "adafactor"},
    "8-bit optimizer": {"training.optim": "adamw_bnb_8bit"},
    "trained head": {"lora.modules_to_save": ["lm_head"]},
    "bfloat16": {"dtype": "bfloat16"},
    "DoRA": {"lora.use_dora": True},
    "DoRA with dropout": {"lora.use_dora": True, "lora.lora_dropout": 0.1},
    "DoRA in 4 bits": {"lora.use_dora": True, "quantization": FOUR_BITS},
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


@pytest.mark.skipif(
    not has_dtype(torch.bfloat16, torch.device("cpu")), reason="slow without bf16 instructions"
)
@pytest.mark.parametrize("task", TASKS)
def test_mixed_precision_is_planned_as_it_runs(recipe, task):
    compare(recipe(task, **{"training.bf16": True}))


def test_experts_are_planned_as_they_run(recipe, tiny_llama_dir, tmp_path):
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    sizes = {key: value for key, value in LLAMA.items() if key != "model_type"}
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


def test_a_step_that_fails_is_one_sentence(config_dir, recipe):
    model = config_dir({**LLAMA, "num_key_value_heads": 3})
    with pytest.raises(PlanError, match="The step of this LlamaForCausalLM fails on fake tensors"):
        plan(recipe(model=model, **{"data.train": "your/data", "data.max_length": 8}))


def test_the_parts_of_the_peak_are_all_of_it(recipe):
    planned = plan(recipe())
    assert sum(planned.at_peak.values()) == planned.peak_bytes
    assert planned.peak_place


def test_a_plan_names_what_is_known_in_closed_form(recipe):
    """Adam keeps two numbers of float32 for each trained one, and nothing for a frozen one."""
    planned = plan(recipe())
    four = 4
    assert planned.adapter_bytes == planned.gradient_bytes == four * planned.trainable
    steps = planned.optimizer_bytes - 2 * four * planned.trainable
    assert 0 <= steps < 1000  # a step counter for each tensor
    assert planned.base_weights_bytes >= four * (planned.total - planned.trainable)


def test_checkpointing_saves_activations(recipe):
    plain, saving = (
        plan(recipe(**{"training.activation_checkpointing": on})) for on in (False, True)
    )
    assert saving.saved_activation_bytes < 0.6 * plain.saved_activation_bytes


def test_the_full_method_trains_everything(recipe):
    full = plan(recipe(), method="full")
    assert full.trainable == full.total
    assert full.gradient_bytes == 4 * full.total
    assert full.optimizer_bytes >= 8 * full.total


def test_the_adapter_file_has_the_size_that_was_planned(recipe):
    made = recipe(**{"training.max_steps": 1})
    result = lorakit.train(made)
    real = (result.adapter_path / "adapter_model.safetensors").stat().st_size
    assert plan(made).adapter_file_bytes == real


def test_steps_and_tokens_of_the_run(recipe):
    made = recipe(**{"training.num_train_epochs": 2, "training.gradient_accumulation_steps": 2})
    planned = plan(made)
    rows = 24 - 6  # a quarter is held out
    assert planned.updates == 2 * math.ceil(math.ceil(rows / 4) / 2)
    assert planned.batches == 2 * planned.updates
    assert planned.epochs == made.training["num_train_epochs"]
    result = lorakit.train(made)
    assert result.steps == planned.updates
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


def test_a_config_alone_is_enough(config_dir, recipe):
    model = config_dir({**LLAMA, "num_hidden_layers": 3})
    made = recipe(model=model, **{"data.train": "your/data", "data.max_length": 100})
    planned = plan(made)
    assert (planned.batch_rows, planned.batch_tokens) == (4, 100)
    assert planned.updates is None
    assert "100 tokens" in planned.notes[0]
    assert planned.trainable == 3 * 4 * (4 * (32 + 32) + 2 * (32 + 64) + (64 + 32))


def test_rows_are_counted_without_a_tokenizer(config_dir, recipe):
    planned = plan(recipe(model=config_dir(LLAMA), **{"data.max_length": 50}))
    assert planned.batch_tokens == 50
    assert planned.updates == 3 * math.ceil(18 / 4)


LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def test_a_paged_optimizer_is_not_on_the_gpu(config_dir, recipe):
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "vocab_size": 1000}
    model = config_dir({**LLAMA, **sizes})
    changes = {"data.train": "your/data", "data.max_length": 16, "lora.r": 256}
    made = recipe(model=model, **changes, **{"training.use_cpu": False})
    options = {"training.optim": "paged_adamw_32bit"}
    paged = plan(made.with_changes(options, "the test"), device="cuda")
    plain = plan(made, device="cuda")
    assert paged.optimizer_bytes < 0.1 * plain.optimizer_bytes
    eight = plan(made.with_changes({"training.optim": "adamw_8bit"}, "the test"), device="cuda")
    assert 0.2 < eight.optimizer_bytes / plain.optimizer_bytes < 0.3


def test_it_fits_or_it_does_not(recipe):
    made = recipe()
    needed = plan(made).needed_bytes
    assert plan(made, memory=2 * needed).fits is True
    assert plan(made, memory="1MB").fits is False


def test_a_plan_is_json(recipe):
    values = json.loads(json.dumps(plan(recipe()).to_dict()))
    assert {
        *("trainable", "total", "base_weights_bytes", "adapter_bytes", "gradient_bytes"),
        *("optimizer_bytes", "saved_activation_bytes", "peak_bytes", "adapter_file_bytes", "fits"),
    } <= values.keys()


# ---- several processes ----


def test_replicas_keep_their_gradients_twice(recipe):
    one, two = (plan(recipe(), processes=n) for n in (1, 2))
    assert two.peak_bytes - one.peak_bytes == one.gradient_bytes
    assert two.updates == 3 * math.ceil(9 / 4)


def test_shares_are_a_part_of_the_whole(config_dir, recipe):
    model = config_dir({**LLAMA, "num_hidden_layers": 12})
    made = recipe(model=model, **{"data.train": "your/data", "data.max_length": 16})
    made = made.with_changes({"training.fsdp": True}, "the test")
    one, four = (plan(made, processes=n) for n in (1, 4))
    assert four.base_weights_bytes == pytest.approx(one.base_weights_bytes / 4, rel=0.02)
    assert four.optimizer_bytes == pytest.approx(one.optimizer_bytes / 4, rel=0.1)
    assert four.saved_activation_bytes == one.saved_activation_bytes
    assert four.peak_bytes < one.peak_bytes


def test_packed_weights_are_not_shared_out(recipe):
    made = recipe(**{"quantization": FOUR_BITS, "training.fsdp": True})
    packed = 0.5 * 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64)
    assert plan(made, processes=1000).base_weights_bytes > packed


# ---- bad input ----


def test_a_config_without_sizes_is_refused(config_dir, recipe):
    values = {key: LLAMA[key] for key in LLAMA if key not in ("hidden_size", "vocab_size")}
    model = config_dir(values)
    with pytest.raises(ConfigError, match=r"config.json has no vocab_size, hidden_size"):
        plan(recipe(model=model))


def test_a_config_that_says_not_what_it_is_of(config_dir, recipe):
    with pytest.raises(MissingFileError, match="model_type"):
        plan(recipe(model=config_dir({"hidden_size": 3})))


def test_remote_code_needs_permission(config_dir, recipe):
    model = config_dir({**LLAMA, "model_type": "own", "auto_map": {"AutoConfig": "own.Config"}})
    with pytest.raises(ConfigError, match="set trust_remote_code=true in the recipe"):
        plan(recipe(model=model))


@pytest.mark.parametrize("memory", ["much", "16XB", "-3GB", "", "0GB"])
def test_a_memory_that_is_none(recipe, memory):
    with pytest.raises(ConfigError, match=f"Cannot read the memory: got '{memory}'"):
        plan(recipe(), memory=memory)


def test_a_pattern_that_matches_nothing(recipe):
    with pytest.raises(TargetError, match="Did you mean 'q_proj'"):
        plan(recipe(**{"lora.target_modules": ["q_porj"]}))


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


def test_a_plan_made_apart_is_the_same(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as a launcher sets it; nobody else comes
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    made = apart.plan_in_separate_process(recipe(), 2)
    assert made is not None
    monkeypatch.undo()
    here = plan(recipe(), processes=2)
    assert (made.peak_bytes, made.notes) == (here.peak_bytes, here.notes)


def test_there_is_no_plan_apart_where_none_can_be_made(recipe, monkeypatch):
    ended = []

    def forked_run(command, env, **_):
        """Run `python -m lorakit.planning.separate_process` with the libraries loaded."""
        _, _, module, *words = command
        code = f"import runpy; runpy.run_module({module!r}, run_name='__main__')"
        with Program(code, *words, environment=env) as program:
            ended.append(program.finished())
        raise subprocess.CalledProcessError(ended[-1].returncode, command)

    monkeypatch.setattr(apart.subprocess, "run", forked_run)
    assert apart.plan_in_separate_process(recipe(**{"lora.target_modules": ["q_porj"]}), 2) is None
    assert ended[0].returncode == 1 and "TargetError" in ended[0].stderr


def test_a_batch_is_as_large_as_in_training_however_few_rows_are_looked_at(recipe, monkeypatch):
    from lorakit.planning import sources

    monkeypatch.setattr(sources, "_LONGEST", 1)
    monkeypatch.setattr(sources, "_SPREAD", 2)
    made = recipe(**{"training.packing": True, "data.max_length": 64})
    assert plan(made).batch_rows == 4  # four rows are looked at and make one pack, taken again
    assert plan(recipe()).batch_rows == 4


def test_rows_are_read_once_for_all_plans(recipe, monkeypatch):
    from lorakit.planning import alternatives, find_sources
    from lorakit.training.tasks import task_for

    made = recipe()
    found = find_sources(made, task_for(made.task))
    monkeypatch.setattr("lorakit.planning.sources.load_splits", None)
    planned = plan(made, sources=found)
    assert len(alternatives.side_by_side(made, planned, sources=found)) == 3
    assert plan(made, sources=found).at_peak == planned.at_peak


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", "lora_ga"])
def test_what_an_update_is_measured_from_takes_memory_and_a_place_in_the_file(recipe, init):
    plain, offset = plan(recipe()), plan(recipe(**{"lora.init_lora_weights": init}))
    assert offset.trainable == plain.trainable
    assert offset.adapter_bytes == plain.adapter_bytes
    assert offset.base_weights_bytes - plain.base_weights_bytes == plain.adapter_bytes
    assert offset.optimizer_bytes == plain.optimizer_bytes
    header = 2000
    factors = 4 * plain.trainable
    assert 0 <= offset.adapter_file_bytes - plain.adapter_file_bytes - factors < header
    assert offset.peak_bytes > plain.peak_bytes


@pytest.mark.parametrize("init", ["eva", "loftq", "pissa"])
def test_others_take_what_an_ordinary_adapter_takes(recipe, init):
    changes = {"quantization": FOUR_BITS, "lora.init_lora_weights": init}
    plain, other = plan(recipe(quantization=FOUR_BITS)), plan(recipe(**changes))
    kept = plain.adapter_bytes if init == "pissa" else 0
    assert other.base_weights_bytes - plain.base_weights_bytes == kept
    assert other.trainable == plain.trainable


def test_a_plan_tells_what_training_would_refuse(recipe):
    with pytest.raises(QuantizationError, match="not quantised"):
        plan(recipe(**{"lora.init_lora_weights": "loftq"}))

"""Runs whose adapter begins at the base's weight or at training data."""

import json

import pytest

from lorakit import Adapter, LoraConfig, add_adapter
from lorakit.adapters.peft_files.files import CONFIG_FILE, read_adapter_files
from lorakit.distributed.sharding import require_shardable
from lorakit.errors import ConfigError
from lorakit.training import Recipe, train
from tiny_models import llama

FOUR_BITS = {"bits": 4, "compute_dtype": "float32"}


def lora(init, **more):
    return {"r": 2, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]} | {
        "init_lora_weights": init,
        **more,
    }


def bits(result):
    _, tensors, *_ = read_adapter_files(result.adapter_path)
    return {key: tensor.numpy().tobytes() for key, tensor in tensors.items()}


def assert_ordinary_of_twice_the_rank(result):
    adapter = Adapter.load(result.adapter_path)
    assert adapter.config.init_lora_weights is True
    assert {A.shape[0] for A, _ in adapter.factors.values()} == {4}
    assert all(adapter.delta_weight(path).any() for path in adapter.factors)


@pytest.mark.parametrize("init", ["pissa_niter_2", "olora"])
def test_a_run_ends_with_an_ordinary_adapter_of_twice_the_rank(recipe, init):
    assert_ordinary_of_twice_the_rank(train(recipe(lora=lora(init))))


def test_eva_trains_the_ranks_that_its_data_gave_it(recipe):
    events = []
    result = train(
        recipe(lora=lora("eva", target_modules=["q_proj", "o_proj", "down_proj"], init_batches=2)),
        on_event=lambda *event: events.append(event),
    )
    adapter = Adapter.load(result.adapter_path)
    ranks = {path: A.shape[0] for path, (A, _) in adapter.factors.items()}
    assert sum(ranks.values()) == 2 * 6 and set(ranks.values()) != {2}
    assert all(B.any() for _, B in adapter.factors.values())
    assert {match.path: match.r for match in result.injection.matches} == ranks
    assert adapter.config.init_lora_weights is True


def test_loftq_starts_from_the_error_of_the_recipe_s_quantization(recipe):
    made = recipe(lora=lora("loftq"), quantization=FOUR_BITS, training={"learning_rate": 1e-9})
    adapter = Adapter.load(train(made).adapter_path)
    assert {A.shape[0] for A, _ in adapter.factors.values()} == {2}
    assert all(adapter.delta_weight(path).abs().max() > 1e-3 for path in adapter.factors)


def test_pissa_on_a_quantized_base(recipe):
    made = recipe(lora=lora("pissa"), quantization=FOUR_BITS)
    adapter = Adapter.load(train(made).adapter_path)
    assert {A.shape[0] for A, _ in adapter.factors.values()} == {4}


@pytest.mark.parametrize("init", ["pissa", "lora_ga", "eva", "loftq"])
def test_a_resumed_run_is_the_run_that_never_stopped(recipe, stop_after, monkeypatch, init):
    options = {"lora": lora(init), "training": {"save_strategy": "steps", "save_steps": 2}}
    if init == "eva":
        options["lora"]["target_modules"] = ["q_proj", "o_proj", "down_proj"]
    if init == "loftq":
        options["quantization"] = FOUR_BITS
    straight = train(recipe("straight", **options))
    if init in ("pissa", "lora_ga"):
        assert_ordinary_of_twice_the_rank(straight)
    with stop_after(3):
        train(recipe(**options))

    def twice(*args, **kwargs):
        raise AssertionError("data was looked at again")

    monkeypatch.setattr("lorakit.training.trainers.data_initialization.initialize_from_data", twice)
    resumed = train(recipe(**options), resume=True)
    assert bits(resumed) == bits(straight)
    files = [json.loads((r.adapter_path / CONFIG_FILE).read_text()) for r in (resumed, straight)]
    assert files[0] == files[1]
    assert {m.path: m.r for m in resumed.injection.matches} == {
        m.path: m.r for m in straight.injection.matches
    }


def test_checkpointed_models_are_initialized_too(recipe):
    options = {"activation_checkpointing": True, "max_steps": 1}
    train(recipe(lora=lora("lora_ga"), training=options))


TASKS = {
    "SEQ_CLS": ("tiny_distilbert_dir", "cls_csv", {}),
    "TOKEN_CLS": ("tiny_bert_dir", "ner_jsonl", {}),
    "SEQ_2_SEQ_LM": ("tiny_t5_dir", "summary_parquet", {}),
    "CAUSAL_LM": ("tiny_llama_dir", "prompt_jsonl", {"packing": True}),
}


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("init", ["eva", "lora_ga"])
def test_every_task_can_be_initialized_from_its_examples(request, tmp_path, task, init):
    model, data, options = TASKS[task]
    made = Recipe.check(
        {
            "model": request.getfixturevalue(model),
            "task": task,
            "data": {"train": request.getfixturevalue(data), "max_length": 32},
            "lora": {"r": 2, "init_lora_weights": init},
            "training": {"max_steps": 2, "use_cpu": True, **options},
            "output": str(tmp_path / "run"),
        },
        "the test",
    )
    adapter = Adapter.load(train(made).adapter_path)
    assert any(adapter.delta_weight(path).any() for path in adapter.factors)


def test_sharded_models_are_refused():
    model = llama()
    add_adapter(model, LoraConfig(r=2, init_lora_weights="pissa"))
    with pytest.raises(ConfigError, match="is measured from its initialization"):
        require_shardable(model)

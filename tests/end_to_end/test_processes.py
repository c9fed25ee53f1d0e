"""Two processes (gloo, CPU) train the adapter that one process trains."""

import json

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fixtures.data import write_jsonl
from fixtures.preferences import PAIRS, VOTES
from forked import run_together
from launched import PASSAGES, metric_rows, train_all, without_dropout, write_recipe
from lorakit import LoraConfig, add_adapter, save_adapter
from lorakit.training import Recipe, RunDirectory, train
from tiny_models import randomize_


@pytest.fixture(scope="module", autouse=True)
def passages(few_neutral_passages):
    """One process has the neutral passages of the two."""
    from lorakit.training.verdict import judge

    few = (few_neutral_passages or judge.neutral_passages)()[:PASSAGES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "neutral_passages", lambda: few)
        yield


# Of losses, norms and weights. Sums of float32 are made in another order; AdamW divides what that
# changes in a small gradient by the gradient's size.
TOLERANCES = {"loss": 1e-5, "norm": 1e-4, "weight": 1e-4}
SETTINGS = {"logging_steps": 1, "learning_rate": 1e-3, "use_cpu": True}

BOTH_ENDS = {"embed_tokens": [5, 9, 20], "lm_head": [9, 30]}

KINDS = {
    # name: (task, adapter, what two processes do besides, what both do)
    "SEQ_CLS": ("SEQ_CLS", {}, {}, {}),
    "TOKEN_CLS": ("TOKEN_CLS", {}, {}, {}),
    "SEQ_2_SEQ_LM": (
        "SEQ_2_SEQ_LM",
        {},
        {},
        {"activation_checkpointing": True, "generation_max_length": 8},
    ),
    "CAUSAL_LM": ("CAUSAL_LM", {}, {}, {"optim": "memory_mapped_adamw"}),
    "head": ("CAUSAL_LM", {"modules_to_save": ["lm_head"]}, {}, {}),
    "4 bits": ("CAUSAL_LM", {}, {}, {}),
    "tokens": ("CAUSAL_LM", {"trainable_token_indices": BOTH_ENDS}, {}, {}),
    "fsdp tokens": ("CAUSAL_LM", {"trainable_token_indices": BOTH_ENDS}, {"fsdp": True}, {}),
    "pissa": ("CAUSAL_LM", {"init_lora_weights": "pissa"}, {}, {}),
    # From all rows, so that it does not matter how they are put into batches.
    "eva": ("SEQ_CLS", {"init_lora_weights": "eva", "init_batches": 20}, {}, {}),
    "fsdp SEQ_CLS": ("SEQ_CLS", {}, {"fsdp": True}, {}),
    "fsdp CAUSAL_LM": ("CAUSAL_LM", {}, {"fsdp": True}, {"activation_checkpointing": True}),
    "fsdp head": (
        "CAUSAL_LM",
        {"modules_to_save": ["lm_head"]},
        {"fsdp": True, "fsdp_config": {"reshard_after_forward": False}},
        {},
    ),
    "fsdp 4 bits": ("CAUSAL_LM", {}, {"fsdp": True}, {}),
    "from an adapter": ("CAUSAL_LM", {"r": 3}, {}, {}),
    "fsdp from an adapter": ("CAUSAL_LM", {}, {"fsdp": True}, {}),
    "dpo": ("dpo", {}, {}, {}),
    "fsdp dpo": ("dpo", {}, {"fsdp": True}, {}),
    "kto": ("kto", {}, {}, {}),
    "reward": ("reward", {}, {}, {}),
}

# name: (task, objective)
OBJECTIVES = {
    "dpo": ("CAUSAL_LM", {"type": "dpo"}),
    "kto": ("CAUSAL_LM", {"type": "kto"}),
    "reward": ("SEQ_CLS", {"type": "reward"}),
}

# The second epoch has another order of the examples; once for each task and for sharded bases.
TWO_EPOCHS = {"SEQ_CLS", "TOKEN_CLS", "SEQ_2_SEQ_LM", "CAUSAL_LM", "fsdp SEQ_CLS", "fsdp CAUSAL_LM"}
TWO_EPOCHS |= {"dpo"}


class Runs:
    """Recipes of runs in one process and in two, at the same global batch."""

    def __init__(self, folder, sources):
        self.folder = folder
        self.sources = {
            task: (without_dropout(model, folder / f"base-{task}"), data)
            for task, (model, data) in sources.items()
        }
        self.parent = folder / "parent"
        base = AutoModelForCausalLM.from_pretrained(self.sources["CAUSAL_LM"][0])
        add_adapter(base, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM"))
        randomize_(base)
        save_adapter(base, self.parent)

    def path(self, name, processes):
        return self.folder / f"{name}-{processes}.yaml".replace(" ", "-")

    def write(self, name, processes):
        task, lora, when_two, always = KINDS[name]
        model, data = self.sources[task]
        task, objective = OBJECTIVES.get(task, (task, None))
        quantization = {"bits": 4, "compute_dtype": "float32"} if "4 bits" in name else None
        batch = 6 // processes  # of 37, 25, 25 and 19 rows: the last batches come out uneven
        return write_recipe(
            self.path(name, processes),
            model=model,
            task=task,
            objective=objective,
            data={"train": data, "validation_fraction": 0.22},
            lora={"r": 4, **lora},
            quantization=quantization,
            start_from=str(self.parent) if "from an adapter" in name else None,
            dtype="float32" if quantization else "saved",
            training={
                **SETTINGS,
                "num_train_epochs": 2 if name in TWO_EPOCHS else 1,
                "per_device_train_batch_size": batch,
                "per_device_eval_batch_size": batch,
                **always,
                **(when_two if processes == 2 else {}),
            },
        )


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory,
    tiny_distilbert_dir,
    tiny_bert_dir,
    tiny_t5_dir,
    tiny_llama_dir,
    cls_csv,
    ner_jsonl,
    summary_parquet,
    prompt_jsonl,
):
    folder = tmp_path_factory.mktemp("processes")
    pairs = write_jsonl(folder / "pairs.jsonl", PAIRS)
    sources = {
        "SEQ_CLS": (tiny_distilbert_dir, cls_csv),
        "TOKEN_CLS": (tiny_bert_dir, ner_jsonl),
        "SEQ_2_SEQ_LM": (tiny_t5_dir, summary_parquet),
        "CAUSAL_LM": (tiny_llama_dir, prompt_jsonl),
        "dpo": (tiny_llama_dir, pairs),
        "kto": (tiny_llama_dir, write_jsonl(folder / "votes.jsonl", VOTES)),
        "reward": (tiny_llama_dir, pairs),
    }
    return Runs(folder, sources)


@pytest.fixture(scope="module")
def in_two(runs):
    """Train every kind in one launch of two processes."""
    jobs = [(runs.write(name, 2), "start") for name in KINDS]
    ended, seen = train_all(jobs, runs.folder)
    assert [one.returncode for one in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    return seen


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_train_what_one_does(name, runs, in_two):
    one, two = train(Recipe.load(runs.write(name, 1))).run_dir, runs.path(name, 2).with_suffix("")
    assert_same_numbers(metric_rows(two), metric_rows(one))
    assert RunDirectory.open(two).processes == 2
    ours, expected = (load_file(run / "adapter/adapter_model.safetensors") for run in (two, one))
    assert ours.keys() == expected.keys()
    for key, tensor in expected.items():
        assert tensor.shape == ours[key].shape
        assert (tensor - ours[key]).abs().max() < TOLERANCES["weight"], key
    assert (two / "report.md").exists() and not list(two.glob(".*"))
    assert_same_predictions(*map(RunDirectory, (two, one)))
    assert_same_verdict(*map(RunDirectory, (two, one)))


def assert_same_predictions(two, one):
    assert two.predictions_file.exists() == one.predictions_file.exists()
    assert two.confusion_plot.exists() == one.confusion_plot.exists()
    if not one.predictions_file.exists():
        return
    files = [run.predictions_file.read_text(encoding="utf-8") for run in (two, one)]
    ours, expected = ([json.loads(line) for line in file.splitlines()] for file in files)
    probabilities = [[row.pop("probability", None) for row in rows] for rows in (ours, expected)]
    assert ours == expected
    for here, there in zip(*probabilities, strict=True):
        assert here == pytest.approx(there, abs=1e-4)


def assert_same_verdict(two, one):
    ours, expected = (json.loads(run.verdict_file.read_text("utf-8")) for run in (two, one))
    for part in ("comparison", "forgetting"):
        here, there = ours[part] or {}, expected[part] or {}
        assert here.keys() == there.keys()
        for key in set(here) - {"gain", "rise"}:
            assert here[key] == (
                pytest.approx(there[key], rel=1e-4) if key in ("before", "after") else there[key]
            )
    assert ours["divergence"] == pytest.approx(expected["divergence"], abs=1e-5)


def assert_same_numbers(rows, expected):
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for key, value in other.items():
            if key == "train_padding_share":  # each process has narrower batches
                assert 0 <= row[key] < 0.5
            elif key == "accuracy" and row["step"] == 1:
                assert 0 <= row[key] <= 1  # policy and reference are equal: rounding decides
            elif key == "eval_perplexity":
                assert row[key] == pytest.approx(value, rel=TOLERANCES["loss"])
            elif isinstance(value, float):
                limit = TOLERANCES["norm" if key == "grad_norm" else "loss"]
                assert row[key] == pytest.approx(value, abs=limit), key
            else:
                assert row[key] == value, key


def test_one_process_tokenizes_the_examples(in_two):
    first, second = (seen["rows"] for seen in in_two)
    assert all(rows > 0 for rows in first) and len(first) == len(KINDS)
    assert second == [0] * len(KINDS)


def test_the_model_is_sharded_where_fsdp_is_asked_for(in_two):
    for seen in in_two:
        assert seen["sharded"] == ["fsdp" in name for name in KINDS]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_peft_loads_the_adapter_of_a_sharded_model(runs, in_two):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from lorakit import load_adapter

    adapter = runs.path("fsdp head", 2).with_suffix("") / "adapter"
    base = runs.sources["CAUSAL_LM"][0]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    ours = AutoModelForCausalLM.from_pretrained(base).eval()
    plain = ours(torch.tensor([[5, 6, 7]])).logits
    load_adapter(ours, adapter)
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)
    assert not torch.allclose(ours(ids).logits, plain)


HANG = """
import time

import torch

from lorakit.distributed.gradient_average import average_gradients
from lorakit.distributed.processes import (
    init_process_groups,
    process_rank,
    translating_process_failures,
)

init_process_groups(use_cpu=True, timeout_s=2)
with translating_process_failures():
    if process_rank() == 1:
        time.sleep(100)
    average_gradients([torch.nn.Parameter(torch.ones(2))])
"""


def test_a_process_that_hangs_is_waited_for_as_long_as_the_recipe_says():
    waiting, hanging = run_together(HANG)
    assert waiting.returncode != 0 and hanging.returncode != 0
    assert "Process 0 of 2 waited for another that did not come" in waiting.stderr
    assert "training.ddp_timeout" in waiting.stderr

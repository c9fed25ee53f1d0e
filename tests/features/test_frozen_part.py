"""Runs with the frozen part from a cache: each task, kind of base and objective, and sharing."""

import sqlite3
from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file

from fixtures.data import write_jsonl
from fixtures.preferences import PAIRS
from launched import train_all
from lorakit.training import Recipe, RunDirectory, train
from lorakit.training.frozen_part.store import HiddenStates

UPPER = {"r": 2, "target_modules": "all-linear", "layers_to_transform": [1]}
WORDS = ["red", "green", "blue", "cat", "dog", "bird", "film", "story"]
NF4 = {"bits": 4, "compute_dtype": "float32"}


def texts(labels_of):
    return [
        {
            "text": f"the {WORDS[i % 8]} was {WORDS[i * 3 % 8]} {WORDS[i * 5 % 8]}"
            + " good" * (i % 3)
        }
        | {"label": labels_of(i)}
        for i in range(16)
    ]


ROWS = {
    "classes": texts(lambda i: ["bad", "good"][i % 2]),
    "several labels": texts(lambda i: [["film"], ["film", "cat"], []][i % 3]),
    "numbers": texts(lambda i: i / 10),
    "prompts": [
        {"prompt": f"what is {word}?", "completion": f" {other}" + " good" * (i % 4)}
        for i, word in enumerate(WORDS)
        for other in WORDS[i % 5 :: 3][:2]
    ],
    "pairs": PAIRS,
}
KINDS = {
    # name: (base, rows, values of the recipe)
    "classification": ("distilbert", "classes", {"task": "SEQ_CLS"}),
    "multi-label": ("bert", "several labels", {"task": "SEQ_CLS"}),
    "regression": ("distilbert", "numbers", {"task": "SEQ_CLS"}),
    "tagging": ("bert", "tags", {"task": "TOKEN_CLS"}),
    "4 bits": ("llama", "prompts", {"quantization": NF4}),
    "packed": ("llama", "prompts", {"training": {"packing": True}}),
    "bloom": ("bloom", "prompts", {}),
    "bf16": ("llama", "prompts", {"dtype": "bfloat16"}),
    "autocast": ("llama", "prompts", {"training": {"bf16": True}}),
}
TWO_ANSWERS = "an objective puts two answers into a row."
NOT_KEPT = {
    # name: (base, rows, values of the recipe, reason)
    "odds ratio": ("llama", "pairs", {"objective": {"type": "orpo"}}, TWO_ANSWERS),
    "preferences": ("llama", "pairs", {"objective": {"type": "dpo"}}, TWO_ANSWERS),
    "reward": (
        *("distilbert", "pairs"),
        {"task": "SEQ_CLS", "objective": {"type": "reward"}},
        TWO_ANSWERS,
    ),
    "padding-free": (
        *("llama", "prompts"),
        {"training": {"padding_free": True}},
        "a batch does not have one row of token ids for each example.",
    ),
}
COMPARED = ("tagging", "packed")
"""Kinds that are compared at the end, one with guessing and one with the base."""
# In 16 bits, products of other shapes differ by 2^-8, and AdamW divides by a gradient's size.
TOLERANCES = {"autocast": 3e-2, "bf16": 3e-2}


@pytest.fixture
def make(tmp_path, request, ner_jsonl):
    """Make the recipe of a kind: make(kind, output, **frozen_part)."""

    def recipe(kind, output, frozen=None, training=None, lora_dropout=0.1):
        base, rows, values, *_ = (KINDS | NOT_KEPT)[kind]
        data = ner_jsonl if rows == "tags" else write_jsonl(tmp_path / "data.jsonl", ROWS[rows])
        settings = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "use_cpu": True}
        settings |= {"learning_rate": 5e-3, **values.get("training", {}), **(training or {})}
        return Recipe.check(
            {
                "task": "CAUSAL_LM",
                **values,
                "model": request.getfixturevalue(f"tiny_{base}_dir"),
                "data": {"train": data, "validation_fraction": 0.25},
                "lora": {**UPPER, "lora_dropout": lora_dropout},
                "frozen_part": {"cache_directory": str(tmp_path / "kept"), **(frozen or {})},
                "evaluation": {"compare_with_base": kind in COMPARED},
                "training": settings,
                "output": str(tmp_path / output),
            },
            "the test",
        )

    return recipe


@pytest.fixture
def computed(monkeypatch):
    """Return the number of examples of each batch whose frozen blocks ran and were kept."""
    made = []
    put = HiddenStates.put
    monkeypatch.setattr(
        HiddenStates, "put", lambda self, states: made.append(len(states)) or put(self, states)
    )
    return made


def trained(recipe):
    """Return the adapter's tensors, the evaluations' losses and the notes of a run."""
    notes = []
    result = train(recipe, on_event=lambda name, event: notes.extend(event.get("notes", ())))
    rows = RunDirectory.open(result.run_dir).metrics()
    losses = [row["eval_loss"] for row in rows if row.get("event") == "evaluation"]
    return load_file(result.adapter_path / "adapter_model.safetensors"), losses, notes


def assert_close(got, expected, kind):
    (tensors, losses), (others, other_losses) = got, expected
    tolerance = TOLERANCES.get(kind, 1e-5)
    assert losses == pytest.approx(other_losses, rel=tolerance)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_and_the_next_train_and_evaluate_as_without(kind, make, computed):
    *expected, _ = trained(make(kind, "without", {"cache_bytes": 0}))
    assert not computed
    *first, notes = trained(make(kind, "first"))
    assert any("are computed once for each example and kept in" in note for note in notes)
    assert_close(first, expected, kind)
    batches = len(computed)
    *second, _ = trained(make(kind, "second"))
    assert batches and len(computed) == batches, "the next run read all, validation included"
    assert_close(second, expected, kind)


@pytest.mark.parametrize("kind", NOT_KEPT)
def test_what_is_computed_in_every_step_says_why(kind, make, computed):
    *expected, _ = trained(make(kind, "without", {"cache_bytes": 0}, {"num_train_epochs": 1}))
    *got, notes = trained(make(kind, "with", training={"num_train_epochs": 1}))
    (note,) = [note for note in notes if "are computed in every step" in note]
    assert note.endswith(NOT_KEPT[kind][-1])
    assert not computed
    assert_bits(got, expected)


def assert_bits(got, expected):
    (tensors, losses), (others, other_losses) = got, expected
    assert losses == other_losses
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize("kind", ["classification", "4 bits", "bf16", "autocast"])
def test_the_bits_are_the_same_where_each_example_stays_in_its_batch(kind, make):
    training = {"train_sampling_strategy": "sequential"}
    *expected, _ = trained(make(kind, "without", {"cache_bytes": 0}, training))
    for name in ("first", "second"):
        *got, _ = trained(make(kind, name, training=training))
        assert_bits(got, expected)


def test_the_first_epoch_has_the_bits_of_a_run_without(make):
    training = {"num_train_epochs": 1}
    *expected, _ = trained(make("autocast", "without", {"cache_bytes": 0}, training))
    *got, _ = trained(make("autocast", "with", training=training))
    assert_bits(got, expected)


def test_two_processes_keep_each_example_once_and_train_the_same(make, tmp_path):
    paths = []
    for name in ("without", "first", "second"):
        frozen = {"cache_bytes": 0} if name == "without" else None
        recipe = make("4 bits", name, frozen, {"per_device_train_batch_size": 2})
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(recipe.to_yaml())
    ended, _ = train_all([(path, "start") for path in paths], tmp_path)
    assert [one.returncode for one in ended] == [0, 0], ended[0].stderr
    (file,) = (tmp_path / "kept").glob("*.sqlite")
    with closing(sqlite3.connect(file)) as connection:
        ((kept,),) = connection.execute("SELECT COUNT(*) FROM kept")
    assert kept >= len(ROWS["prompts"])
    expected, *others = (
        load_file(path.with_suffix("") / "adapter/adapter_model.safetensors") for path in paths
    )
    for tensors in others:
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-4, atol=1e-5)


def test_bases_share_a_directory_and_read_what_is_theirs(make, computed, tmp_path):
    *expected, _ = trained(make("classification", "without", {"cache_bytes": 0}))
    trained(make("regression", "other"))
    trained(make("multi-label", "another base"))
    before = len(computed)
    *got, _ = trained(make("classification", "with"))
    assert len(computed) > before
    assert_close(got, expected, "classification")


def test_a_damaged_directory_costs_time_and_nothing_else(make, computed, tmp_path):
    *expected, _ = trained(make("4 bits", "first"))
    (file,) = (tmp_path / "kept").glob("*.sqlite")
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 3 :: 7] = b"x" * len(damaged[len(damaged) // 3 :: 7])
    file.write_bytes(damaged)
    before = len(computed)
    *got, _ = trained(make("4 bits", "second"))
    assert len(computed) > before, "they were computed again"
    assert_close(got, expected, "4 bits")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("attempt to write a readonly database", "readonly"),
        ("database or disk is full", "disk is full"),
    ],
)
def test_a_directory_that_takes_nothing_costs_time_and_nothing_else(error, says, make, monkeypatch):
    *expected, _ = trained(make("4 bits", "without", {"cache_bytes": 0}))

    def refuse(*args, **kwargs):
        raise sqlite3.OperationalError(error)

    monkeypatch.setattr(sqlite3, "connect", refuse)
    *got, notes = trained(make("4 bits", "with"))
    (note,) = [note for note in notes if "are computed in every step" in note]
    assert "they cannot be kept in" in note and says in note
    assert_bits(got, expected)

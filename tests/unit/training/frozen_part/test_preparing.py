"""Runs whose frozen part is computed once: the same adapter, and what stands in the way."""

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.llama import modeling_llama

from fixtures.data import write_jsonl
from lorakit.training import Recipe, train
from lorakit.training.frozen_part import cached_forward, preparing

UPPER = {"r": 2, "lora_dropout": 0.1, "target_modules": "all-linear", "layers_to_transform": [1]}
EPOCHS = {"num_train_epochs": 2, "max_steps": -1}


@pytest.fixture
def run(recipe, tmp_path):
    """Train the upper of two layers; return the adapter's tensors and the notes."""

    def train_upper(output, frozen=None, **changes):
        frozen = {"cache_directory": str(tmp_path / "kept"), **(frozen or {})}
        notes = []
        result = train(
            recipe(output, lora=UPPER, frozen_part=frozen, **{"training": EPOCHS, **changes}),
            on_event=lambda name, event: notes.extend(event["notes"]) if name == "notes" else None,
        )
        return load_file(result.adapter_path / "adapter_model.safetensors"), notes

    return train_upper


@pytest.fixture
def computed(monkeypatch):
    """Return the number of batches whose frozen blocks ran."""
    made = []
    put = preparing.HiddenStates.put
    monkeypatch.setattr(
        preparing.HiddenStates,
        "put",
        lambda self, states: made.append(len(states)) or put(self, states),
    )
    return made


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


def test_the_adapter_is_that_of_a_run_without_a_cache(run, computed):
    expected, notes = run("without", {"cache_bytes": 0})
    assert not computed and not any("frozen_part" in note for note in notes)
    first, notes = run("first")
    (note,) = [note for note in notes if "cache_bytes" in note]
    assert note.startswith("The 1 of 2 blocks below the first adapted one are computed once")
    batches = len(computed)
    assert_same(first, expected)
    second, _ = run("second")
    assert len(computed) == batches, "all examples were known"
    assert_same(second, expected)


def test_a_directory_that_is_a_file_costs_time_and_nothing_else(run, tmp_path):
    expected, notes = run("without", {"cache_bytes": 100})
    assert any("frozen_part.cache_bytes=100 has no room for one example" in note for note in notes)
    (tmp_path / "file").write_text("")
    got, notes = run("with", {"cache_directory": str(tmp_path / "file")})
    (note,) = [note for note in notes if "frozen" in note]
    assert "are computed in every step: they cannot be kept in" in note and "exists" in note
    assert_same(got, expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"gradient_checkpointing": True}, "gradient checkpointing runs blocks again"),
        ({"neftune_noise_alpha": 5.0}, "changes their input in every step"),
    ],
    ids=["gradient checkpointing", "noise"],
)
def test_what_runs_blocks_otherwise_is_named(run, changes, reason):
    _, notes = run("run", training={"max_steps": 1, **changes})
    (note,) = [note for note in notes if "frozen" in note]
    assert reason in note and "in every step" in note


def test_a_model_that_gives_another_loss_from_kept_outputs_keeps_none(run, monkeypatch):
    expected, _ = run("without", {"cache_bytes": 0})
    kept = cached_forward.CachedForward.read_states
    monkeypatch.setattr(
        cached_forward.CachedForward, "read_states", lambda *args: kept(*args).flip(1)
    )
    got, notes = run("with")
    assert any("gives another loss with kept outputs" in note for note in notes)
    assert_same(got, expected)


def test_blocks_that_return_a_tuple_are_kept(run, tiny_bloom_dir, computed):
    expected, _ = run("without", {"cache_bytes": 0}, model=tiny_bloom_dir)
    got, notes = run("run", model=tiny_bloom_dir)
    (note,) = [note for note in notes if "frozen" in note]
    assert note.startswith("The 1 of 2 blocks below the first adapted one are computed once")
    assert computed
    assert_same(got, expected)


def test_blocks_that_return_something_else_run_in_every_step(run, monkeypatch):
    monkeypatch.setattr(preparing.BlockOutput, "of", lambda output: None)
    _, notes = run("run", training={"max_steps": 1})
    (note,) = [note for note in notes if "frozen" in note]
    assert note.endswith("the blocks of this LlamaForCausalLM do not return hidden states first.")


def test_blocks_that_others_read_from_run_in_every_step(run, monkeypatch):
    expected, _ = run("without", {"cache_bytes": 0})
    forward = modeling_llama.LlamaDecoderLayer.forward
    left = []

    def leaving_for_the_next(self, *args, **kwargs):
        if self.self_attn.layer_idx == 0:
            left.append("keys and values")
        else:
            left.pop()
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", leaving_for_the_next)
    got, notes = run("with")
    (note,) = [note for note in notes if "frozen" in note]
    assert "this LlamaForCausalLM needs them to run (IndexError: pop from empty list)" in note
    assert_same(got, expected)


def test_blocks_that_something_trained_reaches_run_in_every_step(run, monkeypatch):
    forward = modeling_llama.LlamaDecoderLayer.forward

    def shifted(self, hidden_states, *args, **kwargs):
        return forward(self, hidden_states + trained[0].lora_B.sum(), *args, **kwargs)

    trained = []
    start = preparing._keep

    def keep(held, trainer, *args):
        layer = trainer.model.get_submodule("model.layers.1.self_attn.q_proj")
        trained.append(layer.updates["default"])
        monkeypatch.setattr(modeling_llama.LlamaDecoderLayer, "forward", shifted)
        return start(held, trainer, *args)

    monkeypatch.setattr(preparing, "_keep", keep)
    _, notes = run("run", training={"max_steps": 1})
    (note,) = [note for note in notes if "frozen" in note]
    assert note.endswith("what is trained outside the blocks changes their output.")


@pytest.mark.parametrize(
    ("base", "is_causal"), [("llama", True), ("bert", False)], ids=["causal", "both directions"]
)
def test_only_a_causal_base_keeps_pieces(base, is_causal, request, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "_PIECE_TOKENS", 4)
    rows = [
        {"text": "the film was good the film was bad"[: 34 - n], "label": n % 2} for n in (0, 1)
    ]
    data = write_jsonl(tmp_path / "texts.jsonl", rows * 4)
    seen = []
    rows_of = cached_forward.rows_of
    monkeypatch.setattr(
        cached_forward, "rows_of", lambda *given: seen.append(rows_of(*given)) or seen[-1]
    )
    values = {
        "model": request.getfixturevalue(f"tiny_{base}_dir"),
        "task": "SEQ_CLS",
        "data": {"train": data},
        "lora": UPPER,
        "frozen_part": {"cache_directory": str(tmp_path / "kept")},
        "training": {"max_steps": 1, "use_cpu": True},
        "output": str(tmp_path / "run"),
    }
    train(Recipe.check(values, "the recipe"))
    assert all((len(row.pieces) > 1) == is_causal for row in seen[-1]), seen[-1]


def test_dropout_below_is_off_unless_the_recipe_leaves_it_on(tiny_bert_dir, cls_csv, tmp_path):
    found = {}
    for dropout in (False, True):
        notes = []
        frozen = {"cache_directory": str(tmp_path / "kept"), "dropout": dropout}
        values = {
            "model": tiny_bert_dir,
            "task": "SEQ_CLS",
            "data": {"train": cls_csv},
            "lora": UPPER,
            "frozen_part": frozen,
            "training": {"max_steps": 2, "use_cpu": True},
            "output": str(tmp_path / f"dropout-{dropout}"),
        }
        made = Recipe.check(values, "the recipe")
        train(made, on_event=lambda name, e, to=notes: to.extend(e.get("notes", ())))
        found[dropout] = [note for note in notes if "block" in note]
    assert [note.split(" are ")[0] for note in found[False]] == [
        "Dropout is off in the 1 of 2 blocks below the first adapted one and before them; "
        "frozen_part.dropout=true leaves it on.",
        "The 1 of 2 blocks below the first adapted one",
    ]
    (note,) = found[True]
    assert note.endswith("computed in every step: their dropout is on (frozen_part.dropout).")


def test_a_recipe_without_frozen_blocks_says_nothing(recipe):
    made = recipe("run", training={"max_steps": 1})
    notes = []
    train(made, on_event=lambda name, event: notes.extend(event.get("notes", ())))
    assert not any("frozen" in note for note in notes)

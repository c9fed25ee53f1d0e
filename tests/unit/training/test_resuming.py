"""Which recipes may continue a run."""

from pathlib import Path

import pytest

from lorakit.errors import CheckpointError, OutputExistsError
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training import resuming, train
from lorakit.training.resuming import require_resumable


@pytest.fixture
def begun(tmp_path, jsonl):
    """The resolved recipe of a run that has begun."""
    recipe = Recipe(
        model="m",
        task="SEQ_CLS",
        data={"train": jsonl([{"text": "a", "label": n} for n in range(2)] * 5)},
        output=str(tmp_path / "run"),
        training={"num_train_epochs": 2, "max_steps": -1, "seed": 1},
    )
    RunDirectory.create(recipe.output, recipe)
    return recipe


def test_the_same_recipe_continues_however_it_is_searched_and_saved(begun):
    require_resumable(begun)
    changes = {"training.save_total_limit": 1, "search": {"trials": 3}, "study": {"ranks": [1]}}
    require_resumable(begun.with_changes(changes, "a test"))


def test_another_recipe_is_refused_with_its_keys(begun):
    changed = begun.with_changes({"lora.r": 4, "training.seed": 7}, "a test")
    with pytest.raises(CheckpointError, match=r"differs from .* in lora.r, training.seed, expect"):
        require_resumable(changed)


def test_a_run_that_names_no_order_had_random_batches(begun):
    key = "training.train_sampling_strategy"
    require_resumable(begun.with_changes({key: "random"}, "a test"))
    with pytest.raises(CheckpointError, match=rf"differs from .* in {key}, expect"):
        require_resumable(begun.with_changes({key: "group_by_length"}, "a test"))


@pytest.mark.parametrize(
    ("changes", "is_more"),
    [
        ({}, False),
        ({"training.num_train_epochs": 3}, True),
        ({"training.num_train_epochs": 1}, False),
        ({"training.max_steps": 9}, False),  # as long as before, or shorter: nobody knows
        ({"training.max_steps": 9, "training.num_train_epochs": 9}, False),
    ],
)
def test_a_finished_run_continues_only_for_more_epochs(begun, monkeypatch, changes, is_more):
    monkeypatch.setattr(RunDirectory, "is_finished", True)
    recipe = begun.with_changes(changes, "a test")
    if is_more:
        require_resumable(recipe)
        return
    with pytest.raises(OutputExistsError, match=r"Nothing to resume in .*: the run is finished"):
        require_resumable(recipe)


@pytest.mark.parametrize(("before", "now", "is_more"), [(4, 8, True), (8, 8, False), (8, 4, False)])
def test_steps_take_precedence_over_epochs(begun, monkeypatch, before, now, is_more):
    first = begun.with_changes({"training.max_steps": before}, "a test")
    RunDirectory.open(begun.output).write_recipe(first)
    monkeypatch.setattr(RunDirectory, "is_finished", True)
    changes = {"training.max_steps": now, "training.num_train_epochs": 1}
    if is_more:
        require_resumable(begun.with_changes(changes, "a test"))
    else:
        with pytest.raises(OutputExistsError):
            require_resumable(begun.with_changes(changes, "a test"))


def test_another_number_of_processes_is_refused(begun, monkeypatch):
    monkeypatch.setattr(resuming, "process_count", lambda: 2)
    with pytest.raises(CheckpointError, match=r"got 2 processes, expected 1 as at its start"):
        require_resumable(begun)


def test_a_base_with_other_weights_is_refused(begun, tiny_bert_dir, tmp_path):
    recipe = begun.with_changes({"model": tiny_bert_dir, "output": str(tmp_path / "b")}, "a test")
    facts = {"lineage": {"base_digest": "0" * 64}}
    RunDirectory.create(recipe.output, recipe, facts=facts)
    with pytest.raises(CheckpointError, match=r"weights of model '.*' have changed since the run"):
        require_resumable(recipe)


def test_a_damaged_recipe_of_the_run_is_named(begun):
    RunDirectory(Path(begun.output)).recipe_file.write_text("- a")
    with pytest.raises(CheckpointError, match=r"/recipe\.yaml is damaged \(Cannot read"):
        require_resumable(begun)


def test_training_asks(begun):
    changed = begun.with_changes({"lora.r": 4}, "a test")
    with pytest.raises(CheckpointError, match=r"lora\.r"):
        train(changed, resume=True)

"""Searches whose trials train together, with real Ray."""

from pathlib import Path

import pytest

from lorakit.errors import ConfigError
from lorakit.libraries.ray_cluster import Machine
from lorakit.training import Recipe, RunDirectory, train
from lorakit.tuning import tune
from lorakit.tuning.groups import _places, _split, open_groups
from lorakit.tuning.records import evaluations_of
from lorakit.tuning.space import Space
from lorakit.tuning.trial import TrialPlan, trial_recipe

RATES = [2e-2, 1e-6]
GRID = {
    "algorithm": "grid",
    "max_concurrent": 4,
    "max_epochs": 4,
    "asha": {"reduction_factor": 2},
    "space": {"lora.r": {"choice": [2, 4]}, "training.learning_rate": {"choice": RATES}},
    "together": 2,
}


def test_trials_that_train_together_find_what_they_find_alone(machines, recipe, tmp_path):
    events = []
    result = tune(recipe(search=GRID), on_event=lambda *event: events.append(event))
    assert ("together", {"note": "2 in each of 2 processes"}) in events
    status = {record.name: record.status for record in result.records}
    assert "stopped" in status.values() and "finished" in status.values(), status
    assert result.best.values["training.learning_rate"] == RATES[0]
    alone = Recipe.load(result.best.path / "recipe.yaml")
    alone = alone.with_changes({"output": str(tmp_path / "alone")}, "a test")
    run = RunDirectory(train(alone).run_dir)
    for ours, theirs in zip(result.best.evaluations, evaluations_of(run), strict=True):
        assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-5)


def test_what_cannot_train_together_is_refused(machines, recipe):
    varied = GRID | {"space": {"dtype": {"choice": ["float32", "bfloat16"]}}}
    with pytest.raises(ConfigError, match=r"search.space varies dtype.*Set `together` to 1"):
        tune(recipe("varied", search=varied))


COMPILED = {"torch_compile": True}
REENTRANT = {
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"use_reentrant": True},
}


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (COMPILED, "the recipe has training.torch_compile: it compiles the model of one run"),
        (REENTRANT, "activation_checkpointing_kwargs.use_reentrant is true, expected false"),
    ],
    ids=["by its recipe", "by its model"],
)
def test_no_trial_starts_where_none_can_train_with_others(machines, recipe, training, said):
    searched, events = recipe(search=GRID, training=training), []
    with pytest.raises(ConfigError) as caught:
        tune(searched, on_event=lambda name, payload: events.append(name))
    assert str(caught.value) == f"Trials cannot train together: {said}. Set `together` to 1."
    assert "trials" not in events
    assert not Path(searched.output).exists(), "so that it can be corrected and started again"


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (COMPILED, "cannot train together: the recipe has training.torch_compile"),
        (REENTRANT, "use_reentrant is true, expected false. Set `together` to 1."),
    ],
    ids=["by its recipe", "by its model"],
)
def test_why_trials_stay_apart_is_said(machines, recipe, tmp_path, training, said):
    searched = recipe(search={**GRID, "together": "auto"}, training=training)
    space, settings = Space(searched.search.space, "search.space"), searched.search
    plan = TrialPlan(trial_recipe(searched, settings, 18), space, settings, tmp_path, tmp_path)
    with open_groups(plan, settings, 2, machines, on_gpus=False) as groups:
        assert (groups.actors, groups.size) == ((), 1)
        assert groups.note.startswith("each trial in its own process, as ")
        assert said in groups.note


def test_there_is_a_group_for_each_gpu_or_for_each_machine_without():
    bare, with_gpus = Machine("a", 4, 0), Machine("b", 9, 2)
    assert _places([bare, Machine("c", 0, 0)], on_gpus=False) == [bare]
    assert _places([with_gpus], on_gpus=False) == [Machine("b", 9, 0)]
    assert _places([bare, with_gpus], on_gpus=True) == [Machine("b", 4, 1)] * 2


def test_a_machine_is_split_into_as_many_parts_as_it_has_processors():
    assert _split(Machine("a", 7, 0), 3) == [Machine("a", 2, 0)] * 3
    assert _split(Machine("a", 1, 0), 3) == [Machine("a", 1, 0)]
    assert _split(Machine("b", 4, 1), 1) == [Machine("b", 4, 1)]

"""Trials: their recipe, what they report and when, and what a resumed one need not repeat."""

from types import SimpleNamespace

import pytest

from fixtures.trials import trial_plan
from lorakit.config import TaskType
from lorakit.errors import ConfigError, TrainingError
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import SearchConfig
from lorakit.tuning import trial
from lorakit.tuning.trial import (
    MetricError,
    epochs_of,
    read_evaluations,
    require_shared_output,
    train_trial,
)


def recipe_of(task="SEQ_CLS", **training):
    values = {"model": "m", "task": task, "data": {"train": "x.csv"}, "output": "o"}
    return Recipe.check({**values, "search": {}, "training": training}, "the test")


def test_a_trial_is_evaluated_and_saved_after_every_epoch_and_keeps_its_best():
    settings = SearchConfig(metric="accuracy", max_epochs=2, sample_fraction=0.25)
    searched = recipe_of(max_steps=9, eval_strategy="steps", eval_steps=3, learning_rate=0.1)
    made = trial.trial_recipe(searched, settings, train_examples=10)
    assert made.training == {
        "learning_rate": 0.1,
        "num_train_epochs": 2,
        "eval_strategy": "epoch",
        "eval_on_start": False,
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "metric_for_best_model": "eval_accuracy",
        "greater_is_better": True,
        "load_best_model_at_end": True,
    }
    assert made.data.max_train_rows == 2
    assert not made.evaluation.compare_with_base and searched.evaluation.compare_with_base
    assert made.search is None


def test_the_schedule_of_a_trial_is_its_own_whatever_that_of_the_recipe_is():
    given = {"max_steps": 9, "save_steps": 3, "eval_delay": 5, "eval_strategy": "no"}
    searched = recipe_of(**given, eval_on_start=True)
    assert trial.schedule_of(searched, SearchConfig(metric="f1", mode="min", max_epochs=2)) == {
        "num_train_epochs": 2,
        "eval_strategy": "epoch",
        "eval_on_start": True,
        "save_strategy": "epoch",
        "metric_for_best_model": "eval_f1",
        "greater_is_better": False,
        "load_best_model_at_end": True,
    }


def test_the_chosen_recipe_trains_the_same_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    (tmp_path / "x.csv").touch()
    searched = recipe_of(max_steps=9)
    made = trial.chosen_recipe(searched, SearchConfig(max_epochs=2), {"lora.r": 2}, "best")
    assert made.lora.r == 2 and made.search is None
    assert made.training["num_train_epochs"] == 2 and "max_steps" not in made.training
    paths = (made.model, made.data.train, made.output)
    assert paths == (f"{tmp_path}/m", f"{tmp_path}/x.csv", f"{tmp_path}/o/best")


@pytest.mark.parametrize("task", list(TaskType))
def test_only_a_loss_that_cannot_be_guessed_is_measured_before_training(task):
    made = trial.trial_recipe(recipe_of(task), SearchConfig(), train_examples=10)
    assert made.training["eval_on_start"] == (task in ("CAUSAL_LM", "SEQ_2_SEQ_LM"))
    assert made.data.max_train_rows is None


def test_epochs_are_those_of_the_search_or_whole_ones_of_the_recipe():
    assert epochs_of(recipe_of(num_train_epochs=5), SearchConfig(max_epochs=2)) == 2
    assert epochs_of(recipe_of(num_train_epochs=0.2), SearchConfig()) == 1
    assert epochs_of(recipe_of(), SearchConfig()) == 3


def evaluation(step, max_steps=4, **metrics):
    return {"step": step, "max_steps": max_steps, "epoch": step / 2, "metrics": metrics}


def test_an_epoch_is_reported_when_its_checkpoint_is_on_disk_and_the_last_at_the_end():
    reported = []
    reporter = trial._Reporter("eval_loss", reported.append)
    reporter("evaluation", evaluation(2, eval_loss=1.0))
    assert reported == []
    reporter("checkpoint", {})
    reporter("checkpoint", {})
    assert reported == [{"eval_loss": 1.0, "epoch": 1, "step": 2}]
    reporter("evaluation", evaluation(4, eval_loss=0.5))
    reporter("checkpoint", {})
    assert len(reported) == 1
    reporter.report_last()
    assert reported[1:] == [{"eval_loss": 0.5, "epoch": 2, "step": 4}]


def test_a_metric_that_is_missing_or_not_a_number_ends_the_trial():
    reported = []
    with pytest.raises(MetricError, match=r"No trial reports the metric 'eval_f1': .* eval_loss"):
        trial._Reporter("eval_f1", reported.append)("evaluation", evaluation(2, eval_loss=1.0))
    for value in (None, float("nan")):
        with pytest.raises(TrainingError, match="'eval_loss' is not a number after epoch 1: got"):
            trial._Reporter("eval_loss", reported.append)(
                "evaluation", evaluation(2, eval_loss=value)
            )
    assert reported == []


def test_evaluations_after_the_newest_checkpoint_are_repeated(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path)
    for step in (0, 2, 4):
        run.append_metrics({"event": "evaluation", "step": step, "epoch": step / 2})
    assert read_evaluations(run) == []
    monkeypatch.setattr(trial.checkpoints, "newest_complete", lambda path: path / "checkpoint-2")
    assert [row["step"] for row in read_evaluations(run)] == [2]
    monkeypatch.setattr(RunDirectory, "is_finished", True)
    assert [row["step"] for row in read_evaluations(run)] == [2, 4]


def test_a_run_of_a_sample_that_was_lost_gives_its_place_to_another(tmp_path):
    plan = trial_plan(tmp_path)
    run = RunDirectory(tmp_path / "trial-001")
    run.path.mkdir()
    run.recipe_file.write_text(plan.recipe_of({"lora.r": 1}, "trial-001").to_yaml())
    resumed = []

    def training(recipe, *, resume, on_event):
        resumed.append((resume, run.path.exists()))

    for rank in (1, 2):
        train_trial({"lora.r": rank}, "trial-001", plan, training, print)
    assert resumed == [(True, True), (False, False)]


def test_a_machine_without_the_output_is_named(tmp_path):
    require_shared_output(tmp_path)
    with pytest.raises(ConfigError, match=f"No directory {tmp_path}/none on the machine "):
        require_shared_output(tmp_path / "none")


def test_a_trial_computes_with_its_processors_whatever_the_environment_says(tmp_path, monkeypatch):
    settings = SearchConfig(cpus_per_trial=2)
    plan = trial.TrialPlan(recipe_of(), None, settings, tmp_path, tmp_path)
    asked = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    monkeypatch.setattr("ray.tune.get_context", lambda: SimpleNamespace(get_trial_name=lambda: "a"))
    monkeypatch.setattr(trial, "train_trial", lambda *given: asked.append(given[1]))
    trial.run_trial({}, plan)
    assert asked == [2, "a"]

"""Records of trials: the best epoch and trial, their table and their TensorBoard files."""

import csv
from dataclasses import replace

from fixtures.trials import trial_record
from lorakit.analysis.guessing import Reference
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import SearchConfig
from lorakit.tuning.records import (
    best_record,
    evaluations_of,
    warning_text,
    write_hparams,
    write_trials,
)

LOSS = SearchConfig()


def test_the_best_epoch_is_that_of_the_metric():
    record = trial_record(losses=[0.5, 0.25, 0.75])
    assert (record.epochs, record.wall_s) == (3, 3.0)
    assert record.best(LOSS)["epoch"] == 2
    assert record.best_value(SearchConfig(metric="loss", mode="max")) == 0.75
    assert record.best_value(SearchConfig(metric="f1")) is None
    assert (trial_record().epochs, trial_record().best(LOSS)) == (0, None)


def test_the_best_trial_is_none_that_failed_and_the_first_of_equals():
    records = [
        trial_record(1, "failed", [0.1]),
        trial_record(2, "stopped", [0.5]),
        trial_record(3, "finished", [0.4, 0.6]),
        trial_record(4, "finished", [0.4]),
        trial_record(5),
    ]
    assert best_record(records, LOSS) is records[2]
    assert best_record(records, SearchConfig(mode="max")) is records[2]
    assert best_record([records[0], records[4]], LOSS) is None


def test_evaluations_are_those_after_training_began_and_each_step_once(tmp_path):
    run = RunDirectory(tmp_path)
    rows = [
        {"event": "evaluation", "step": 0, "eval_loss": 2.0},
        {"event": "step", "step": 1, "loss": 1.5},
        {"event": "evaluation", "step": 2, "eval_loss": 1.0},
        {"event": "evaluation", "step": 2, "eval_loss": 0.9},
    ]
    for row in rows:
        run.append_metrics(row)
    assert [row["eval_loss"] for row in evaluations_of(run)] == [0.9]


def test_the_table_has_a_row_for_each_trial(tmp_path):
    records = [
        trial_record(1, "finished", [0.5, 0.25, 0.75]),
        trial_record(2, "failed", error="why, exactly"),
    ]
    write_trials(records, LOSS, tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert first == {
        "trial": "trial-001",
        "status": "finished",
        "lora.r": "4",
        "lora.target_modules": "q, v",
        "training.learning_rate": "0.00123456",
        "epochs": "3",
        "best_eval_loss": "0.25",
        "best_epoch": "2",
        "eval_loss": "0.75",
        "wall_s": "3.0",
        "error": "",
    }
    assert (second["error"], second["best_eval_loss"]) == ("why, exactly", "")


def test_hparams_are_added_to_a_run_with_tensorboard_files(tmp_path):
    record = replace(trial_record(losses=[0.5]), path=tmp_path)
    write_hparams(record, LOSS)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "tensorboard").mkdir()
    write_hparams(record, LOSS)
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.name.endswith(".hparams")
    assert b"learning_rate" in file.read_bytes() and b"best/eval_loss" in file.read_bytes()


def test_a_warning_names_the_reference_with_its_value():
    reference = Reference({"eval_accuracy": 0.2}, "guessing by the classes' shares", 40)
    text = warning_text("No trial", "eval_accuracy", reference)
    assert text.startswith("No trial beats guessing by the classes' shares (accuracy 0.2) by more")

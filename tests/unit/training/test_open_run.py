"""Opening a run: a new one, one that was stopped or failed, and one that is finished."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from fixtures.runs import adapter_bytes, untimed_metrics
from lorakit.errors import (
    CheckpointError,
    MissingFileError,
    OutputExistsError,
    TrainingError,
)
from lorakit.recipes import checkpoints
from lorakit.training import RunDirectory, train
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin


def test_a_run_that_cannot_learn_leaves_nothing_behind(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(
        AdapterTrainerMixin, "_get_grad_norm", lambda self, model, grad_norm=None: 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        train(recipe())
    assert list(tmp_path.iterdir()) == []


def test_a_failure_after_a_checkpoint_is_written_down_until_the_run_is_resumed(recipe, monkeypatch):
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = AdapterTrainerMixin.training_step

    def full(self, *args, **kwargs):
        if self.state.global_step == 2:
            raise torch.OutOfMemoryError("Tried to allocate 2 GiB.")
        return whole(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(AdapterTrainerMixin, "training_step", full)
        with pytest.raises(TrainingError):
            train(recipe(training=saving))
    run = RunDirectory.open(recipe().output)
    (sentence,) = json.loads(run.failure_file.read_text())["message"]
    assert sentence.startswith("Memory ran out with training.per_device_train_batch_size=4.")
    train(recipe(training=saving), resume=True)
    assert run.is_finished and not run.failure_file.exists()


def test_a_directory_that_is_deleted_meanwhile_is_named(recipe):
    path = Path(recipe().output)

    def delete(name, payload):
        if name == "step":
            shutil.rmtree(path, ignore_errors=True)

    with pytest.raises(TrainingError, match="the directory has been deleted or moved") as caught:
        train(recipe(), on_event=delete)
    assert str(caught.value).startswith(f"Cannot write the run to {path}: ")


def test_a_finished_run_is_not_trained_again(done):
    recipe = RunDirectory.open(done[0].run_dir).recipe()
    with pytest.raises(OutputExistsError, match="it holds a finished run"):
        train(recipe)


def test_resuming_nothing_is_reported(recipe, tmp_path):
    with pytest.raises(MissingFileError, match=r"No run at .*: there is no such directory"):
        train(recipe(), resume=True)


def test_a_run_stopped_before_its_first_checkpoint_starts_over(recipe, stop_after):
    with stop_after(2):
        train(recipe())
    with pytest.raises(OutputExistsError, match=r"has not finished.*Continue it with `--resume`"):
        train(recipe())
    events = []
    resumed = train(recipe(), resume=True, on_event=lambda *event: events.append(event))
    opened = dict(events)["run_opened"]
    assert opened["resumed_from"] is None
    assert opened["note"] == "There is no complete checkpoint; starting from the beginning."
    straight = train(recipe("straight"))
    assert adapter_bytes(resumed) == adapter_bytes(straight)
    assert untimed_metrics(resumed) == untimed_metrics(straight)


def test_a_resumed_run_is_the_run_that_never_stopped(recipe, stop_after):
    steps = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 8, "logging_steps": 3}
    with stop_after(5):
        train(recipe(training=steps))
    run = RunDirectory.open(recipe().output)
    (run.path / "checkpoint-6").mkdir()  # as a kill in the middle of a save leaves it
    with run.metrics_file.open("a") as file:
        file.write('{"step": 5, "lo')
    events = []
    resumed = train(
        recipe(training=steps), resume=True, on_event=lambda *event: events.append(event)
    )
    opened = dict(events)["run_opened"]
    assert opened["resumed_from"].name == "checkpoint-4"
    assert {path.name: wrong for path, wrong in opened["removed"].items()} == {
        "checkpoint-6": "it has no manifest.json"
    }
    straight = train(recipe("straight", training=steps))
    assert adapter_bytes(resumed) == adapter_bytes(straight)
    assert untimed_metrics(resumed) == untimed_metrics(straight)
    assert resumed.metrics == straight.metrics


def test_labels_that_have_changed_places_are_refused(recipe, stop_after, tiny_bert_dir, tmp_path):
    file = tmp_path / "rows.jsonl"

    def changed(names):
        rows = [{"text": f"row {n}", "label": names[n % 2]} for n in range(24)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {"data": {"train": str(file)}, "lora": {"r": 2}}
        steps = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
        return recipe(model=tiny_bert_dir, task="SEQ_CLS", training=steps, **values)

    with stop_after(2):
        train(changed(["bad", "good"]))
    with pytest.raises(CheckpointError, match="got 'fine' as label 0, expected 'bad'"):
        train(changed(["so so", "fine"]), resume=True)
    assert train(changed(["bad", "good"]), resume=True).steps == 4


def test_data_and_metrics_that_changed_meanwhile_are_said(
    recipe, stop_after, prompt_jsonl, tmp_path
):
    file = tmp_path / "mine.jsonl"
    lines = Path(prompt_jsonl).read_text().splitlines()
    file.write_text("\n".join(lines))
    saving = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    mine = recipe(data={"train": str(file), "validation_fraction": 0}, training=saving)
    with stop_after(3):
        train(mine)
    assert checkpoints.newest_complete(Path(mine.output)) is not None
    before = file.stat()
    file.write_text("\n".join(reversed(lines)))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    metrics = RunDirectory.open(mine.output).metrics_file
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[1:]))
    events = []
    train(mine, resume=True, on_event=lambda *event: events.append(event))
    note = dict(events)["run_opened"]["note"]
    assert note.startswith("The training examples have changed since the run started")
    assert note.endswith(
        "metrics.jsonl has lost 1 of the 2 rows before checkpoint-2 (step 1); the report lacks "
        "them too."
    )


def test_a_finished_run_may_train_on_for_longer(recipe):
    epochs = {"max_steps": -1, "num_train_epochs": 1}
    first = train(recipe(training=epochs))
    before = adapter_bytes(first)
    notes = []
    longer = train(
        recipe(training={**epochs, "num_train_epochs": 2}),
        resume=True,
        on_event=lambda name, payload: notes.append(payload["note"]) if "removed" in payload else 0,
    )
    assert longer.steps == 2 * first.steps
    # The rate is that of two epochs from the first new step on, where it had been zero.
    steps = [row for row in untimed_metrics(longer) if row["event"] == "step"][first.steps :]
    start = RunDirectory.open(longer.run_dir).recipe().training["learning_rate"]
    expected = [start * (1 - (row["step"] - 1) / longer.steps) for row in steps]
    assert [row["learning_rate"] for row in steps] == pytest.approx(expected)
    assert notes[0].startswith("training.num_train_epochs was 1 and is 2: the learning rate goes")
    assert adapter_bytes(longer) != before
    assert RunDirectory.open(longer.run_dir).recipe().training["num_train_epochs"] == 2


def test_a_run_killed_while_it_was_finishing_is_finished(recipe):
    straight = train(recipe())
    rows, bits = untimed_metrics(straight), adapter_bytes(straight)
    (straight.run_dir / "report.md").unlink()
    resumed = train(recipe(), resume=True)
    assert (untimed_metrics(resumed), adapter_bytes(resumed)) == (rows, bits)
    assert resumed.metrics == straight.metrics
    assert RunDirectory.open(resumed.run_dir).is_finished

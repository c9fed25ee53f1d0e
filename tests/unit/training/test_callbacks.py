from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lorakit.training import RunDirectory, train
from lorakit.training.callbacks import RunRecorder


def scalars(run, tag):
    events = EventAccumulator(str(run / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_tensorboard_has_what_metrics_jsonl_has(done):
    run = RunDirectory.open(done[0].run_dir)
    logged = {row["step"]: row["loss"] for row in run.metrics() if "loss" in row}
    evaluated = {row["step"]: row["eval_loss"] for row in run.metrics() if "eval_loss" in row}
    assert scalars(run.path, "train/loss") == pytest.approx(logged)
    assert scalars(run.path, "eval/loss") == pytest.approx(evaluated)


def test_a_resumed_run_counts_its_time_on(tmp_path):
    run = RunDirectory(tmp_path)
    run.append_metrics({"event": "step", "step": 3, "wall_s": 100.0})
    recorder = RunRecorder(run, lambda name, payload: None)
    state = SimpleNamespace(global_step=4, max_steps=9, epoch=0.5)
    recorder.on_log(None, state, None, logs={"loss": 1.0, "epoch": 0.5})
    assert 100.0 <= run.metrics()[-1]["wall_s"] < 160.0


def test_an_error_in_the_callers_handler_is_not_swallowed(recipe):
    with pytest.raises(ZeroDivisionError):
        train(recipe(), on_event=lambda name, payload: name == "step" and 1 / 0)

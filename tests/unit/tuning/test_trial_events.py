"""Records and failures of trials, without a cluster."""

import pickle
from pathlib import Path

import pytest

from fixtures.trials import ray_trial as trial
from fixtures.trials import trial_plan
from lorakit.errors import TargetError
from lorakit.recipes.run_directory import RunDirectory
from lorakit.tuning import trial_events
from lorakit.tuning.trial import MetricError


@pytest.fixture
def plan(tmp_path):
    return trial_plan(tmp_path)


def test_records_follow_the_trials_in_the_order_of_their_numbers(plan, monkeypatch):
    changes = []
    with trial_events.listening(plan, lambda records, changed: changes.append(changed)) as listener:
        trials = [trial(2), trial(1), trial(4, "TERMINATED"), trial(3, "ERROR", ValueError("x"))]
        listener.on_step_begin(0, trials)
        listener.on_trial_start(0, trials, trials[0])
        listener.on_trial_complete(0, trials, trials[1])
        monkeypatch.setattr(RunDirectory, "is_finished", True)
        listener.on_trial_complete(0, trials, trials[0])
        listener.on_experiment_end(trials)
        assert [(record.name, record.status) for record in listener.records()] == [
            ("trial-001", "stopped"),
            ("trial-002", "finished"),
            ("trial-003", "failed"),
            ("trial-004", "stopped"),
        ]
        assert [record.values["lora.r"] for record in listener.records()] == [1, 2, 3, 4]
        assert listener.records()[2].error == "ValueError: x"
    assert [(c.name, c.status) for c in changes] == [
        ("trial-002", "running"),
        ("trial-001", "stopped"),
        ("trial-002", "finished"),
    ]


def test_the_thousandth_trial_is_the_last(plan):
    with trial_events.listening(plan, lambda records, changed: None) as listener:
        trials = [trial(number) for number in (1000, 101, 999)]
        for one in trials:
            one.config = {"lora.r": 1}
        listener.on_step_begin(0, trials)
        names = [record.name for record in listener.records()]
    assert names == ["trial-101", "trial-999", "trial-1000"]


def test_a_metric_that_no_trial_reports_stops_the_search(plan):
    stop = trial_events.StopUseless()
    assert not stop.stop_all()
    with trial_events.listening(plan, lambda records, changed: None) as listener:
        assert not stop.stop_all()
        failed = trial(1, error=MetricError("no f1"))
        listener.on_trial_error(0, [failed], failed)
        assert str(listener.metric_error) == "no f1" and stop.stop_all()
    assert not stop.stop_all()


def test_a_change_that_cannot_be_reported_ends_the_search_and_fails_no_trial(plan):
    def on_change(records, changed):
        raise OSError("disk full")

    with trial_events.listening(plan, on_change) as listener:
        # No Exception, which Ray would take for a failure of the trial.
        with pytest.raises(trial_events.ReportingError) as failure:
            listener.on_trial_start(0, [trial(1)], trial(1))
        assert isinstance(failure.value.__cause__, OSError)
        assert [record.status for record in listener.records()] == ["running"]


def test_the_cause_of_a_failure_is_found_within_what_ray_wraps_around_it(tmp_path):
    cause = TargetError("nothing\n  matches")
    wrapped = RuntimeError("ray")
    wrapped.cause = ValueError("library")
    wrapped.cause.__cause__ = cause
    assert trial_events.cause_of(trial(1, error=wrapped)) is cause
    assert trial_events.failure_text(cause) == "nothing matches"
    staged = trial(1)
    staged.pickled_error_file = tmp_path / "error.pkl"
    Path(staged.pickled_error_file).write_bytes(pickle.dumps(ValueError("first\nlast")))
    assert trial_events.failure_text(trial_events.cause_of(staged)) == "ValueError: last"
    assert trial_events.failure_text(None) == "NoneType: None"


def test_a_killed_process_is_explained():
    class OutOfMemoryError(Exception):
        pass

    text = trial_events.failure_text(OutOfMemoryError())
    assert text.startswith("Its process was killed; memory may have run out.")

"""The side of Ray Tune that needs no cluster: names, records and failures of trials."""

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest

from lorakit.errors import ClusterError, TargetError
from lorakit.libraries.ray_cluster import Machine
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import AshaConfig, SearchConfig
from lorakit.tuning import ray_tune
from lorakit.tuning.space import Space
from lorakit.tuning.trial import MetricError, TrialPlan


class Trial(SimpleNamespace):
    """A trial as Ray Tune has it."""

    pickled_error_file = None

    def __str__(self):
        return self.name

    def get_pickled_error(self):
        return self.error


def trial(number, status="PENDING", error=None):
    sample = {"config": {"lora.r": number}, "trial_id": f"abc_{number - 1:05d}"}
    return Trial(name=f"trial-{number:03d}", status=status, error=error, **sample)


@pytest.fixture
def plan(tmp_path):
    space = Space(SearchConfig(space={"lora.r": {"choice": [1, 2, 3, 4]}}).space, "search.space")
    recipe = Recipe(
        model="m",
        task="CAUSAL_LM",
        data={"train": "x"},
        output="unused",
        training={"num_train_epochs": 2},
    )
    return TrialPlan(recipe, space, SearchConfig(), tmp_path, tmp_path / "base")


def test_a_trial_takes_a_gpu_if_there_are_any():
    bare, with_gpu = Machine("a", 2, 0), Machine("b", 2, 1)
    assert ray_tune.require_trial_resources(SearchConfig(), [bare]) == 0
    assert ray_tune.require_trial_resources(SearchConfig(), [bare, with_gpu]) == 1
    assert ray_tune.require_trial_resources(SearchConfig(gpus_per_trial=0), [with_gpu]) == 0
    with pytest.raises(ClusterError, match=r"a trial \(cpus_per_trial and gpus_per_trial\)"):
        ray_tune.require_trial_resources(SearchConfig(cpus_per_trial=3), [bare, with_gpu])


def test_trials_are_numbered_from_one():
    assert ray_tune._trial_name(trial(1)) == "trial-001"
    resumed = trial(1)
    resumed.config["number"] = 12
    assert ray_tune._trial_name(resumed) == "trial-012"


def test_no_trial_is_stopped_before_its_first_epoch_or_after_its_last(plan):
    settings = SearchConfig(asha=AshaConfig(grace_period=9))
    scheduler = ray_tune._scheduler(plan, settings)
    assert [milestone for milestone, _ in scheduler._brackets[0]._rungs] == [2]
    assert ray_tune._scheduler(plan, SearchConfig(asha=None)) is None


def test_records_follow_the_trials_in_the_order_of_their_numbers(plan, monkeypatch):
    changes = []
    with ray_tune._listening(plan, lambda records, changed: changes.append(changed)) as listener:
        relay = ray_tune._Relay()
        trials = [trial(2), trial(1), trial(4, "TERMINATED"), trial(3, "ERROR", ValueError("x"))]
        relay.on_step_begin(0, trials)
        relay.on_trial_start(0, trials, trials[0])
        relay.on_trial_complete(0, trials, trials[1])
        monkeypatch.setattr(RunDirectory, "is_finished", True)
        relay.on_trial_complete(0, trials, trials[0])
        relay.on_experiment_end(trials)
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


def test_a_metric_that_no_trial_reports_stops_the_search(plan):
    stop = ray_tune._Stop()
    assert not stop.stop_all()
    with ray_tune._listening(plan, lambda records, changed: None) as listener:
        assert not stop.stop_all()
        failed = trial(1, error=MetricError("no f1"))
        ray_tune._Relay().on_trial_error(0, [failed], failed)
        assert str(listener.metric_error) == "no f1" and stop.stop_all()
    assert not stop.stop_all()


def test_the_cause_of_a_failure_is_found_within_what_ray_wraps_around_it(tmp_path):
    cause = TargetError("nothing\n  matches")
    wrapped = RuntimeError("ray")
    wrapped.cause = ValueError("library")
    wrapped.cause.__cause__ = cause
    assert ray_tune._cause(trial(1, error=wrapped)) is cause
    assert ray_tune._failure_text(cause) == "nothing matches"
    staged = trial(1)
    staged.pickled_error_file = tmp_path / "error.pkl"
    Path(staged.pickled_error_file).write_bytes(pickle.dumps(ValueError("first\nlast")))
    assert ray_tune._failure_text(ray_tune._cause(staged)) == "ValueError: last"
    assert ray_tune._failure_text(None) == "NoneType: None"


def test_a_killed_process_is_explained():
    class OutOfMemoryError(Exception):
        pass

    text = ray_tune._failure_text(OutOfMemoryError())
    assert text.startswith("Its process was killed; memory may have run out.")

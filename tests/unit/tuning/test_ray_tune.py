"""The side of Ray Tune that needs no cluster: resources, names and rungs of trials."""

import json
import pickle

import pytest

from fixtures.trials import ray_trial, trial_plan
from lorakit.errors import ClusterError
from lorakit.libraries.ray_cluster import Machine
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.search_sections import AshaConfig, SearchConfig
from lorakit.tuning import ray_tune


def test_a_trial_takes_a_gpu_if_there_are_any():
    bare, with_gpu = Machine("a", 2, 0), Machine("b", 2, 1)
    assert ray_tune.require_trial_resources(SearchConfig(), [bare]) == 0
    assert ray_tune.require_trial_resources(SearchConfig(), [bare, with_gpu]) == 1
    assert ray_tune.require_trial_resources(SearchConfig(gpus_per_trial=0), [with_gpu]) == 0
    with pytest.raises(ClusterError, match=r"a trial \(cpus_per_trial and gpus_per_trial\)"):
        ray_tune.require_trial_resources(SearchConfig(cpus_per_trial=3), [bare, with_gpu])


def test_trials_are_numbered_from_one():
    assert ray_tune._trial_name(ray_trial(1)) == "trial-001"
    resumed = ray_trial(1)
    resumed.config["number"] = 12
    assert ray_tune._trial_name(resumed) == "trial-012"


def test_no_trial_is_stopped_before_its_first_epoch_or_after_its_last(tmp_path):
    plan, settings = trial_plan(tmp_path), SearchConfig(asha=AshaConfig(grace_period=9))
    scheduler = ray_tune._scheduler(plan, settings)
    assert [milestone for milestone, _ in scheduler._brackets[0]._rungs] == [2]
    assert ray_tune._scheduler(plan, SearchConfig(asha=None)) is None


def test_trials_after_a_restart_are_compared_with_those_that_ended_before(tmp_path, monkeypatch):
    monkeypatch.setattr(RunDirectory, "is_finished", True)
    plan = trial_plan(tmp_path)
    run = RunDirectory(tmp_path / "trial-001")
    run.path.mkdir()
    for step, loss in ((4, 1.0), (8, 0.9)):
        run.append_metrics(
            {"event": "evaluation", "step": step, "epoch": step / 4, "eval_loss": loss}
        )
    scheduler = ray_tune._scheduler(plan, SearchConfig())
    scheduler.set_search_properties("eval_loss", "min")
    ended, other = ray_trial(1, "TERMINATED"), ray_trial(2)
    for trial in (ended, other):
        scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, other, {"epoch": 1, "eval_loss": 2.0}) == "STOP"


@pytest.mark.parametrize(
    ("algorithm", "sampler"),
    [
        ("grid", ["basic-variant-state-1.json"]),
        ("tpe", ["search_gen_state-1.json", "searcher-state-1.pkl"]),
    ],
)
def test_a_damaged_record_is_not_resumed(algorithm, sampler, tmp_path):
    settings = SearchConfig(algorithm=algorithm)
    state = tmp_path / "experiment_state-1.json"
    files = [state, *(tmp_path / name for name in sampler)]
    for file in files:
        file.write_bytes(pickle.dumps(["a trial"]))
    state.write_text(json.dumps(["a trial"]))
    assert ray_tune._can_restore(tmp_path, settings)
    for file in files:
        whole = file.read_bytes()
        file.write_bytes(whole[:-3])
        assert not ray_tune._can_restore(tmp_path, settings), file
        file.unlink()
        assert not ray_tune._can_restore(tmp_path, settings), file
        file.write_bytes(whole)


@pytest.mark.parametrize("algorithm", ["random", "tpe"])
def test_a_resumed_search_has_as_many_trials_at_once_as_it_asks_for_now(algorithm, tmp_path):
    plan, settings = trial_plan(tmp_path), SearchConfig(algorithm=algorithm)
    before, now = (ray_tune._sampler(plan, settings, at_once) for at_once in (1, 5))
    state = before.get_state()
    assert state["max_concurrent"] == 1
    now.set_state(state)
    assert now.max_concurrent == 5


def test_trials_together_and_apart_are_the_same_for_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_tune.tune, "with_parameters", lambda f, **given: lambda sample: f)
    monkeypatch.setattr(ray_tune.tune, "with_resources", lambda *given: given)
    plan, here = trial_plan(tmp_path), [Machine("a", 4, 0)]
    groups = ray_tune.Groups(("an actor",), 2, "")
    (together, _), _ = ray_tune._trainable(plan, SearchConfig(), 0, groups, here)
    assert together.__name__ == "run_trial"
    limited = SearchConfig(max_concurrent=3)
    (apart, resources), at_once = ray_tune._trainable(plan, limited, 0, None, here)
    assert apart("sample") is ray_tune.run_trial
    assert (resources, at_once) == ({"cpu": 1, "gpu": 0, "node:a": 0.3333}, 3)
    (_, resources), _ = ray_tune._trainable(plan, limited, 0, None, [*here, Machine("b", 4, 0)])
    assert resources == {"cpu": 1, "gpu": 0}, "machines have a share each, trials any of them"

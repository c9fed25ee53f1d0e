"""The side of Ray Tune that needs no cluster: resources, names and rungs of trials."""

import pytest

from fixtures.trials import ray_trial, trial_plan
from lorakit.errors import ClusterError
from lorakit.libraries.ray_cluster import Machine
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

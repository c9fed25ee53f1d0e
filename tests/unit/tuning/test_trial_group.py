"""The process of a group, without Ray: places, reports and stops of its trials."""

import threading
from dataclasses import replace

import pytest

from lorakit.errors import ConfigError, PlanError
from lorakit.planning import plan as plan_memory
from lorakit.recipes.run_directory import RunDirectory
from lorakit.tuning import group_size, trial_group
from lorakit.tuning.group_size import GroupSize, Room
from lorakit.tuning.space import Space
from lorakit.tuning.trial import TrialPlan, trial_recipe


@pytest.fixture
def plan(recipe, tmp_path):
    searched = recipe(search={"space": {"lora.r": {"choice": [2, 4]}}, "together": 2})
    space = Space(searched.search.space, "search.space")
    settings = searched.search
    (tmp_path / "trials").mkdir()
    folders = (tmp_path / "trials", tmp_path / "base")
    return TrialPlan(trial_recipe(searched, settings, 18), space, settings, *folders)


def in_thread(group, sample, name):
    thread = threading.Thread(target=group.train, args=(sample, name), daemon=True)
    thread.start()
    return thread


def test_trials_report_each_epoch_and_leave_when_they_are_stopped(plan):
    group = trial_group.TrialGroup(plan, threads=1)
    group.open(2)
    assert [group.take_place() for _ in range(3)] == [True, True, False]
    kept = in_thread(group, {"lora.r": 2}, "trial-001")
    stopped = in_thread(group, {"lora.r": 4}, "trial-002")
    assert group.next_report("trial-002")["epoch"] == 1
    group.stop("trial-002")
    epochs = []
    while (report := group.next_report("trial-001")) is not None:
        epochs.append(report["epoch"])
    kept.join(30)
    stopped.join(30)
    assert epochs == [1, 2, 3]
    assert RunDirectory(plan.trials_path / "trial-001").is_finished
    assert not RunDirectory(plan.trials_path / "trial-002").is_finished
    assert group.take_place(), "a trial that is over gives its place back"


def test_a_trial_that_fails_raises_its_error_and_ends_its_reports(plan):
    group = trial_group.TrialGroup(plan, threads=1)
    plan.trials_path.rmdir()
    with pytest.raises(ConfigError, match="the trials of a cluster write into `output`"):
        group.train({"lora.r": 2}, "trial-001")
    assert group.next_report("trial-001") is None


def test_auto_measures_with_the_base_of_the_trials(plan, monkeypatch):
    group, asked = trial_group.TrialGroup(plan, threads=1), []

    def measure(*given):
        asked.append(given)
        return GroupSize(4, 2, "why")

    monkeypatch.setattr(group_size, "quickest_size", measure)
    room = Room(trials=8, threads=1, processes=2, threads_alone=1)
    assert group.measure_size(room) == (4, 2, "why")
    assert asked == [(group._group, plan.recipe, room)]


def test_more_trials_than_fit_are_refused(plan, monkeypatch):
    planned = replace(plan_memory(plan.recipe), memory_bytes=1000)
    monkeypatch.setattr(group_size, "_plan_or_none", lambda run: planned)
    with pytest.raises(PlanError, match=r"2 trials do not fit together: they need .* or to auto"):
        trial_group.TrialGroup(plan, threads=1).require_size(2, 1)
    with pytest.raises(PlanError, match=r"4 trials do not fit together"):
        trial_group.TrialGroup(plan, threads=1).require_size(2, 2)

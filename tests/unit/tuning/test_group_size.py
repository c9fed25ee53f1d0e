"""How many trials train together: the quickest number that fits."""

from dataclasses import replace

import pytest
import torch

from lorakit.planning import bytes_together, plan
from lorakit.training.together import RunGroup
from lorakit.tuning import group_size
from lorakit.tuning.group_size import Room, quickest_size


@pytest.fixture
def timed(monkeypatch):
    """Sets the seconds of a step by the number of runs, and the memory that there is."""

    def set_times(seconds, planned=None):
        def step_s(group, recipe, runs):
            return seconds.get((runs, torch.get_num_threads()), seconds.get(runs))

        monkeypatch.setattr(group_size, "_step_s", lambda recipe: seconds[1])
        monkeypatch.setattr(group_size, "_shared_step_s", step_s)
        monkeypatch.setattr(group_size, "build_fake_run", lambda recipe: None)
        monkeypatch.setattr(group_size, "_plan_or_none", lambda run: planned)

    return set_times


def room(trials, threads=1, processes=1):
    return Room(trials, threads, processes, threads_alone=1)


def test_the_number_with_the_shortest_time_of_each_trial_is_taken(timed):
    timed({1: 1.0, 2: 1.4, 4: 2.0, 8: 4.8})
    found = quickest_size(None, None, room(8))
    assert (found.size, found.note) == (4, "4 in one process, in 0.50 of the time")
    assert quickest_size(None, None, room(3)).size == 2


def test_there_are_as_many_processes_as_have_room_and_trials():
    assert [room(8, processes=4).processes_for(size) for size in (2, 3, 4, 8)] == [4, 3, 2, 1]
    assert room(8, processes=2).processes_for(2) == 2


def test_processes_that_train_at_once_are_measured_with_the_threads_that_each_has(timed):
    timed({1: 1.0, (2, 2): 1.2, (2, 1): 1.6, (4, 2): 2.4, (4, 1): 4.0})
    found = quickest_size(None, None, room(8, threads=2, processes=2))
    assert (found.size, found.processes) == (2, 2)
    assert found.note == "2 in each of 2 processes, in 0.80 of the time"
    timed({1: 1.0, (2, 2): 0.7, (2, 1): 1.6})
    assert quickest_size(None, None, room(2, threads=2, processes=2)).processes == 1
    timed({1: 1.0, (2, 2): 0.7, (2, 1): 1.6, (4, 1): 4.0, (4, 2): 1.3})
    found = quickest_size(None, None, room(4, threads=2, processes=2))
    assert (found.size, found.processes) == (4, 1)


def test_trials_stay_apart_where_together_is_not_clearly_quicker(timed):
    timed({1: 1.0, 2: 1.96, 4: 1.0})
    assert quickest_size(None, None, room(8)).size == 1
    timed({1: 1.0, 2: 1.2})
    assert quickest_size(None, None, room(2, processes=2)).size == 1, "two processes take 0.5 each"


def test_what_does_not_fit_is_not_measured(recipe, timed):
    planned = plan(recipe(), memory=10**12)
    assert bytes_together([planned]) == planned.needed_bytes
    per_run = bytes_together([planned] * 2) - planned.needed_bytes
    assert 0 < per_run < planned.peak_bytes
    timed({1: 1.0, 2: 1.0, 4: 1.0}, replace(planned, memory_bytes=planned.needed_bytes + per_run))
    assert quickest_size(None, None, room(8)).size == 2
    timed({1: 1.0}, replace(planned, memory_bytes=planned.needed_bytes))
    assert "do not fit together" in quickest_size(None, None, room(8)).note
    two = bytes_together([planned] * 2)
    for there, processes in ((2 * two - 1, 1), (2 * two, 2)):
        timed({1: 1.0, 2: 1.0, 4: 9.0}, replace(planned, memory_bytes=there))
        assert quickest_size(None, None, room(4, threads=2, processes=2)).processes == processes


def test_trials_that_cannot_train_together_stay_apart(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    whole = {"r": 2, "target_modules": ["q_proj"]}
    reentrant = {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": True},
    }
    found = quickest_size(RunGroup(), recipe(lora=whole, training=reentrant), room(2))
    assert found.size == 1
    assert found.note.startswith("each trial in its own process, as 2 cannot train together: ")
    assert "use_reentrant is true, expected false" in found.note


def test_a_measurement_trains_some_steps_and_leaves_nothing(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    stops_early = {"early_stopping_patience": 1, "early_stopping_threshold": 0.1}
    assert group_size._step_s(recipe(training=stops_early)) > 0
    assert group_size._shared_step_s(RunGroup(), recipe(), 2) > 0
    assert not list((tmp_path / "scratch").glob("lorakit-together-*"))


def test_the_base_of_a_measurement_is_that_of_the_trials(recipe, tmp_path, monkeypatch):
    from lorakit.training.tasks.base import Task

    loaded, load = [], Task.load_base
    monkeypatch.setattr(Task, "load_base", lambda *given: loaded.append(given) or load(*given))
    group = RunGroup()
    assert group_size._shared_step_s(group, recipe(), 2) > 0
    assert group_size._shared_step_s(group, recipe(), 3) > 0
    trial = recipe("trial").with_changes({"lora.r": 4, "training.seed": 9}, "a trial")
    assert group.start(trial).wait().steps > 0
    assert len(loaded) == 1

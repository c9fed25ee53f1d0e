"""The state of a process that a run expects for itself."""

import dataclasses
import random
import threading

import numpy as np
import torch
from accelerate.state import GradientState

from lorakit.ops import draw_seed
from lorakit.training.together.process_state import ProcessState, RandomState


def draw():
    return torch.rand(()).item(), np.random.rand(), random.random()


def test_what_was_current_comes_back():
    before = ProcessState.current()
    first, hook = draw(), threading.excepthook
    GradientState()._set_sync_gradients(False)
    threading.excepthook = lambda arguments: None
    changed = ProcessState.current()
    before.restore()
    assert draw() == first
    assert threading.excepthook is hook
    assert GradientState._shared_state == before.singletons[2]
    changed.restore()
    assert GradientState().sync_gradients is False
    before.restore()


def test_a_new_run_begins_without_the_state_of_another():
    GradientState()
    before = ProcessState.current()
    before.for_new_run().restore()
    assert GradientState._shared_state == {}
    before.restore()
    assert GradientState._shared_state == before.singletons[2] != {}


def test_a_thread_gets_the_gpu_of_the_state(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    state = ProcessState.current()
    dataclasses.replace(state, cuda_device=None).use_device()
    assert chosen == []
    dataclasses.replace(state, cuda_device=1).use_device()
    assert chosen == [1]


def test_seeds_and_other_numbers_follow_each_other_as_alone():
    torch.manual_seed(5)
    state = ProcessState.current()
    alone = [draw_seed().item(), torch.rand(3).tolist(), draw_seed().item(), torch.rand(()).item()]
    torch.manual_seed(9)
    of_run = RandomState(state)
    found = [of_run.draw_seed().item()]
    with of_run.drawing():
        found.append(torch.rand(3).tolist())
    found.append(of_run.draw_seed().item())
    of_run.write_back()
    state.restore()
    found.append(torch.rand(()).item())
    assert found == alone

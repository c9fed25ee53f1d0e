"""Which module is running, as forward and backward report it."""

import pytest
import torch
from torch import nn
from torch.nn.modules import module as torch_module

from lorakit.planning.running_module import track_running_module


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.outer = nn.Linear(2, 1)

    def forward(self, x):
        return self.outer(self.inner(x).tanh()).sum()


def test_forward_names_the_innermost_module_and_backward_runs_it_in_reverse():
    model, seen = nn.Sequential(Block()), []
    with track_running_module(model, seen.append):
        loss = model(torch.ones(3, 2))
        assert seen == ["Sequential", "0", "0.inner", "0", "0.outer", "0", "Sequential", "loss"]
        seen.clear()
        loss.backward()
    places = list(dict.fromkeys(place.removesuffix(", backward") for place in seen))
    assert places == ["0", "0.outer", "0.inner"]
    assert all(place.endswith(", backward") for place in seen)


def test_a_module_outside_of_the_model_counts_as_the_one_that_calls_it():
    class Helped(nn.Module):
        def forward(self, x):
            return nn.Tanh()(x)

    seen = []
    with track_running_module(nn.Sequential(helped := Helped()), seen.append):
        helped(torch.ones(1))
    assert seen == ["0", "0", "0", "loss"]


def test_no_hook_is_left_after_an_error():
    before = dict(torch_module._global_forward_pre_hooks), dict(torch_module._global_forward_hooks)
    seen = []
    with pytest.raises(RuntimeError), track_running_module(model := Block(), seen.append):
        model(torch.ones(3, 5))
    assert seen[-1] == "loss"  # the modules that failed have been left
    count = len(seen)
    model(torch.ones(3, 2))
    assert len(seen) == count
    now = dict(torch_module._global_forward_pre_hooks), dict(torch_module._global_forward_hooks)
    assert now == before

"""Gradients of two processes, of which each has reached other parameters."""

import pytest
import torch
from torch import nn

from allocations import allocations_of
from lorakit.distributed import gradient_average


@pytest.fixture
def other(monkeypatch):
    """Another process, whose part of each exchange is given in order."""
    parts = []

    def all_reduce(tensor):
        tensor.add_(parts.pop(0))

    def all_reduce_max(values):
        return [max(pair) for pair in zip(values, parts.pop(0), strict=True)]

    monkeypatch.setattr(gradient_average, "all_reduce_max", all_reduce_max)
    monkeypatch.setattr(gradient_average, "process_count", lambda: 2)
    monkeypatch.setattr(gradient_average.distributed, "all_reduce", all_reduce)
    return parts


def test_what_one_process_does_not_reach_counts_as_zero(other):
    here, there, nowhere = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    half = nn.Parameter(torch.zeros(1, 2, dtype=torch.bfloat16))
    here.grad, half.grad = torch.tensor([2.0, 4.0]), torch.tensor([[6.0, 8.0]]).bfloat16()
    other += [[0, 1, 0, 1], torch.tensor([0.0, 0.0, 5.0, 7.0])]
    other += [torch.tensor([1.0, 1.0]).bfloat16()]
    gradient_average.average_gradients([here, there, nowhere, half])
    assert here.grad.tolist() == [1.0, 2.0]
    assert there.grad.tolist() == [5.0, 7.0]
    assert nowhere.grad is None
    assert half.grad.tolist() == [[4.0, 5.0]] and half.grad.dtype == torch.bfloat16


def test_a_message_is_one_copy_of_the_gradients(other):
    parameters = [nn.Parameter(torch.zeros(1000, 10)) for _ in range(8)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    other += [[1] * 8, torch.zeros(80_000)]
    allocated = allocations_of(lambda: gradient_average.average_gradients(parameters))
    # What a plan adds where gradients are averaged, and two numbers of a few bytes.
    assert 80_000 * 4 <= allocated.peak < 80_000 * 4 + 64


def test_one_process_keeps_its_gradients():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    gradient_average.average_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 1.0]

"""What follows from the batch is known on fake tensors; what follows from weights is not."""

import pytest
import torch

from lorakit.errors import PlanError
from lorakit.planning.fake_world import FakeWorld
from lorakit.planning.known_values import known_value


@pytest.fixture
def world():
    made = FakeWorld()
    with made.activate():
        yield made


@pytest.fixture
def ids(world):
    with torch.utils._python_dispatch._disable_current_modes():
        value = torch.tensor([[3, 1, -100, 2], [5, -100, -100, 7]])
    return world.values.fake(value)


def test_shapes_that_follow_from_the_batch(ids):
    assert (ids != -100).nonzero().shape == (5, 2)
    assert ids[ids > 1].shape == (4,)
    assert int((ids != -100).sum()) == 5
    assert not (ids == 1).all()


def test_places_may_pick_from_what_is_unknown(ids):
    hidden = torch.randn(2, 4, 8)
    assert known_value(hidden) is None
    assert hidden[ids != -100].shape == (5, 8)
    assert hidden.reshape(8, 8)[(ids != -100).reshape(-1).nonzero().squeeze(1)].shape == (5, 8)


def test_an_unknown_value_is_an_error(world):
    with pytest.raises(PlanError, match="needs the result of"):
        bool(torch.randn(3).sum() > 0)
    with pytest.raises(PlanError, match="'nonzero'"):
        (torch.randn(3) > 0).nonzero()


def test_what_is_written_over_is_forgotten(ids):
    total = torch.zeros(())
    assert float(total) == 0
    total += ids.sum()
    assert float(total) == -282
    total += torch.randn(())
    with pytest.raises(PlanError):
        float(total)


def test_counters_count(world):
    step = torch.zeros((), dtype=torch.float32)
    torch._foreach_add_([step], 1)
    assert step.item() == 1


def test_a_real_tensor_is_itself():
    tensor = torch.ones(2)
    assert known_value(tensor) is tensor

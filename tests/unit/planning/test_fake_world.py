"""A world of tensors without memory, entered and left several times."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from lorakit.planning.fake_world import FakeWorld


def test_tensors_are_fake_inside_and_real_outside():
    world = FakeWorld()
    with world.activate():
        huge = torch.empty(2**40)
        assert isinstance(huge, FakeTensor)
    assert not isinstance(torch.ones(2), FakeTensor)
    with world.activate():  # what was made before belongs to the same world
        assert (huge + torch.randn(2**40)).shape == (2**40,)
        assert (huge[:3] + torch.ones(3)).shape == (3,)


def test_random_numbers_and_the_library_are_as_before_even_after_an_error():
    from transformers.utils import import_utils

    before, is_fake = torch.get_rng_state(), import_utils.is_fake_tensor
    with pytest.raises(ZeroDivisionError), FakeWorld().activate():
        torch.rand(3)
        torch.manual_seed(9)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before)
    assert import_utils.is_fake_tensor is is_fake
    assert torch.ones(3).sum().item() == 3


def test_transformers_may_read_a_mask_of_the_batch_and_no_other_tensor():
    from transformers.utils import import_utils

    world = FakeWorld()
    mask = world.values.fake(torch.ones(2, 3, dtype=torch.int64))
    with world.activate():
        hidden = torch.randn(2, 3)
        assert not import_utils.is_fake_tensor(mask) and bool((mask == 1).all())
        assert import_utils.is_fake_tensor(hidden)
    assert import_utils.is_fake_tensor(mask)

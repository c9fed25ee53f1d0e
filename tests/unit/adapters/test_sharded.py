"""Sharded tensors and modules, in a group of one process whose shard is the whole."""

import pytest
import torch
from torch import distributed, nn

from lorakit.adapters.sharded import (
    copy_whole_,
    is_fsdp_unit,
    is_sharded,
    unsharded_class,
    whole,
)


@pytest.fixture(scope="module")
def sharded():
    """A layer that `fully_shard` changed, with the values 0 to 5."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        layer = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.arange(6.0).reshape(2, 3))
        yield fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    finally:
        distributed.destroy_process_group()


def test_shards_and_plain_tensors_are_told_apart(sharded):
    plain = nn.Linear(3, 2)
    assert is_sharded(sharded.weight) and not is_sharded(plain.weight)
    assert is_fsdp_unit(sharded) and not is_fsdp_unit(plain)
    assert type(sharded) is not nn.Linear
    assert unsharded_class(sharded) is unsharded_class(plain) is nn.Linear


def test_the_whole_of_a_shard_is_a_plain_tensor_and_fills_it(sharded):
    assert whole(sharded.weight).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert not is_sharded(whole(sharded.weight))
    values = -torch.ones(2, 3, dtype=torch.float64)
    copy_whole_(sharded.weight, values)
    assert is_sharded(sharded.weight) and torch.equal(whole(sharded.weight), values.float())


def test_a_plain_tensor_is_its_own_whole():
    plain = torch.zeros(2)
    assert whole(plain) is plain
    copy_whole_(plain, torch.ones(2))
    assert plain.tolist() == [1, 1]

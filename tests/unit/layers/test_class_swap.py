"""The class of a module is swapped in place, below what accelerate binds to the instance."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lorakit.errors import TargetError
from lorakit.layers.class_swap import mixed_class, swap_class


class Twice(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


@pytest.mark.parametrize("name", ["forward", "_old_forward"])
def test_a_forward_bound_to_the_instance_is_bound_anew(name):
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    weight, expected = layer.weight, 2 * layer(x)
    vars(layer)[name] = layer.forward
    swap_class(layer, Twice)
    assert type(layer) is Twice and layer.weight is weight
    assert torch.equal(vars(layer)[name](x), expected)


def test_a_forward_of_unknown_origin_is_refused():
    layer = nn.Linear(3, 2)
    layer.forward = lambda x: x
    with pytest.raises(TargetError, match="A Linear cannot be adapted: the instance has its own"):
        swap_class(layer, Twice)
    assert type(layer) is nn.Linear


class Loud:
    pass


class Very:
    pass


def test_a_mixed_class_is_the_same_each_time_and_copies_have_it():
    made = mixed_class(Loud, nn.Linear, "Loud")
    assert made is mixed_class(Loud, nn.Linear, "Loud") and made.__name__ == "LoudLinear"
    assert made.__mro__[1:3] == (Loud, nn.Linear) and made.plain_class is nn.Linear
    assert mixed_class(Very, made, "Very").plain_class is nn.Linear
    layer = nn.Linear(3, 2)
    swap_class(layer, made)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is made and torch.equal(other.weight, layer.weight)

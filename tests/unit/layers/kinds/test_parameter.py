"""A stacked parameter that carries updates, and the module that owns it."""

import copy

import pytest
import torch
from torch import nn

from lorakit.errors import AdapterStateError
from lorakit.layers.kinds.experts import LoraExperts, attach, get_adapted_parameter
from lorakit.layers.kinds.parameter import AdaptedParameter


class Stack(nn.Module):
    def __init__(self, is_transposed=False):
        super().__init__()
        self.is_transposed = is_transposed
        self.weights = nn.Parameter(torch.randn(3, 4, 5))


@pytest.mark.parametrize(("is_transposed", "sizes"), [(False, (5, 4)), (True, (4, 5))])
def test_factors_of_each_matrix(is_transposed, sizes):
    stack = Stack(is_transposed)
    parameter = AdaptedParameter(stack, "weights")
    inside, outside = sizes
    assert AdaptedParameter.factor_sizes(parameter) == sizes
    assert AdaptedParameter.factor_shapes(parameter, 2) == ((3, 2, inside), (3, outside, 2))
    assert parameter.base_weight().shape == (3, outside, inside)
    assert parameter.weight is stack.weights and parameter.weight_name == "weights"


def test_attaching_swaps_the_owner_and_leaving_restores_it():
    stack = Stack()
    parameter = get_adapted_parameter(stack, "weights")
    attach(parameter)
    assert isinstance(stack, LoraExperts) and isinstance(stack, Stack)
    assert stack.bind_parameters() == [parameter]
    assert get_adapted_parameter(stack, "weights") is parameter
    parameter.restore_in_place()
    assert type(stack) is Stack and "adapted_parameters" not in stack._modules


def test_a_copy_belongs_to_its_owner_once_it_is_bound():
    stack = Stack()
    attach(get_adapted_parameter(stack, "weights"))
    twin = copy.deepcopy(stack)
    (bound,) = twin.bind_parameters()
    assert bound.weight is twin.weights


def test_a_parameter_whose_module_is_gone():
    parameter = AdaptedParameter(Stack(), "weights")
    with pytest.raises(AdapterStateError, match="The module of weights is gone"):
        _ = parameter.weight

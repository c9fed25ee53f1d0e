"""Functions of a model's classes, and whether they name a weight."""

import functools

import pytest
from torch import nn

from lorakit import LoraConfig, add_adapter
from lorakit.model_code.functions import (
    definition_of,
    function_of,
    is_from,
    methods_name_weights,
    model_classes,
    names_weights,
)


def read(layer):
    return layer.weight


def told(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)

    return wrapper


class Reads(nn.Module):
    def forward(self, x):
        return x @ self.proj.weight


class Passes(nn.Module):
    def forward(self, x):
        return read(self.proj)


class ReadsInAnotherMethod(nn.Module):
    @told
    def penalty(self):
        return self.proj.weight.sum()


class Calls(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = None

    def forward(self, x):
        return self.proj(x)


@pytest.mark.parametrize(
    ("kind", "by_others", "at_all"),
    [
        (Reads, False, True),
        (Passes, False, True),
        (ReadsInAnotherMethod, True, True),
        (Calls, False, False),
        (nn.Linear, False, False),
    ],
)
def test_classes_whose_code_names_a_weight(kind, by_others, at_all):
    assert (methods_name_weights(kind), names_weights(kind)) == (by_others, at_all)


def test_a_function_is_found_behind_its_decorators():
    found = function_of(vars(ReadsInAnotherMethod)["penalty"])
    assert found is not None and found.__code__.co_varnames == ("self",)
    assert function_of(Reads) is None and function_of(3) is None
    assert function_of(classmethod(read)) is read


def test_only_a_function_with_a_definition_has_one():
    definition = definition_of(read)
    assert definition is not None and definition.name == "read"
    assert definition_of(lambda layer: layer.weight) is None
    assert definition_of(eval("lambda layer: layer")) is None


def test_the_classes_that_lorakit_makes_are_left_out():
    model = nn.Sequential(nn.Linear(3, 3))
    plain = model_classes(model[0])
    add_adapter(model, LoraConfig(r=1, target_modules=["0"], bias="all"))
    assert type(model[0]) is not nn.Linear
    assert model_classes(model[0]) == plain and plain[0] is nn.Linear
    assert is_from(nn.Linear, "torch") and not is_from(read, "torch", "builtins")

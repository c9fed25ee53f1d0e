"""Conditions in a model's code, as far as they depend only on its modules."""

import ast

import pytest
import torch
from torch import nn

from lorakit.model_code.conditions import UNKNOWN, Conditions


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(2, 2)
        self.kind, self.scales, self.absent, self.width = "gated", [1, 2], None, 4

    @property
    def is_ready(self):
        raise RuntimeError


def value_of(text):
    model = nn.ModuleDict({"a": Block(), "b": Block()})
    names = {"self": frozenset({"a"}), "either": frozenset({"a", "b"})}
    here = Conditions(dict(model.named_modules()), names, {"x", "len"}, {"LIMIT": 3, "nn": nn})
    return here.evaluate(ast.parse(text, mode="eval").body)


KNOWN = {
    "self.kind == 'gated'": True,
    "self.kind != 'gated'": False,
    "self.width > LIMIT": True,
    "self.width <= LIMIT": False,
    "self.absent is None": True,
    "self.proj is not None": True,
    "1 in self.scales": True,
    "3 not in self.scales": True,
    "not self.absent": True,
    "hasattr(self, 'proj')": True,
    "hasattr(self.proj, 'bias_2')": False,
    "isinstance(self.proj, nn.Linear)": True,
    "isinstance(self.kind, int)": False,
    # What is known decides, beside what is not.
    "x.training and self.absent": False,
    "self.absent and x": False,
    "x or self.kind": True,
    "self.kind and self.width": True,
    "self.absent or 0": False,
}
UNDECIDED = [
    *("x", "x > 1", "x.ndim == 2", "not x", "len", "undefined", "either", "either.kind == 'gated'"),
    *("self.training", "not self.training", "self.is_ready", "self.missing", "x and self.kind"),
    *("x or self.absent", "self.kind < 3", "1 < self.width < 5", "f(self)", "hasattr(x, 'a')"),
    *("isinstance(x, int)", "self.proj.weight == 0", "self.proj.weight > 1"),
    *("not self.proj.weight", "self.proj.weight or 0", "self.scales[0]", "self.width + 1"),
]


@pytest.mark.parametrize(("text", "expected"), KNOWN.items(), ids=KNOWN)
def test_what_depends_on_modules_alone_is_known(text, expected):
    assert value_of(text) is expected


@pytest.mark.parametrize("text", UNDECIDED)
def test_what_depends_on_inputs_weights_or_the_mode_is_unknown(text):
    assert value_of(text) is UNKNOWN


def test_attributes_are_followed_to_their_values():
    assert value_of("self.proj.weight.dtype") is torch.float32
    assert value_of("self.proj.in_features") == 2
    assert value_of("nn.Linear") is nn.Linear
    assert value_of("True") is True

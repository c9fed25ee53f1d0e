"""Which hooks keep executors from computing for several modules at once."""

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from lorakit.layers.hooks import (
    brings_input_or_weights,
    has_foreign_forward,
    has_global_hooks,
    is_intercepted,
)

BEFORE = {
    "accelerate's": lambda layer: setattr(layer, "_hf_hook", object()),
    "forward pre": lambda layer: layer.register_forward_pre_hook(lambda *_: None),
    "backward": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "backward pre": lambda layer: layer.register_full_backward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("register", BEFORE.values(), ids=BEFORE)
def test_what_acts_before_the_forward_brings_its_input(register):
    layer = nn.Linear(2, 2)
    assert not brings_input_or_weights(layer) and not is_intercepted(layer)
    register(layer)
    assert brings_input_or_weights(layer) and is_intercepted(layer)


def test_a_forward_hook_intercepts_and_brings_nothing():
    layer = nn.Linear(2, 2)
    layer.register_forward_hook(lambda *_: None)
    assert is_intercepted(layer) and not brings_input_or_weights(layer)


def test_a_foreign_forward_is_one_that_is_not_the_class_s():
    layer = nn.Linear(2, 2)
    layer.forward = layer.forward
    assert not has_foreign_forward(layer)
    layer.forward = torch.relu
    assert has_foreign_forward(layer) and is_intercepted(layer)
    layer._old_forward = nn.Linear.forward.__get__(layer)  # accelerate's hook hides the class's
    assert not has_foreign_forward(layer)


def test_hooks_of_all_modules():
    assert not has_global_hooks()
    handle = register_module_forward_hook(lambda *_: None)
    try:
        assert has_global_hooks()
    finally:
        handle.remove()

"""Layers whose weights accelerate loads for each pass."""

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook, add_hook_to_module
from torch import nn

from lorakit.layers.offload import execution_device, is_offloaded, weights_in_place


def offloaded(in_a_row=False):
    layer = nn.Linear(3, 2)
    weights = {name: value.detach().clone() for name, value in layer.state_dict().items()}
    hook = AlignDevicesHook(execution_device="cpu", offload=True, weights_map=weights)
    add_hook_to_module(layer, SequentialHook(hook) if in_a_row else hook)
    return layer, weights


def test_a_layer_in_memory():
    layer = nn.Linear(3, 2)
    assert not is_offloaded(layer) and execution_device(layer) == torch.device("cpu")
    with weights_in_place(layer):
        pass


def test_weights_are_there_inside_the_block_and_gone_after_it():
    for in_a_row in (False, True):
        layer, weights = offloaded(in_a_row)
        assert is_offloaded(nn.Sequential(layer)) and layer.weight.device.type == "meta"
        assert execution_device(layer) == torch.device("cpu")
        with weights_in_place(nn.Sequential(layer)):
            assert torch.equal(layer.weight, weights["weight"])
        assert layer.weight.device.type == "meta"

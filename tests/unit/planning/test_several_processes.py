"""The memory of each of several processes."""

import math
from dataclasses import replace

import pytest
from torch import nn

from lorakit.planning import plan
from lorakit.planning.live_storages import Purpose
from lorakit.planning.several_processes import memory_per_process
from lorakit.planning.step_memory import StepMemory


def test_replicas_share_the_examples(recipe):
    one, two = (plan(recipe(), processes=n) for n in (1, 2))
    assert two.at_peak == one.at_peak  # in backward, before gradients are averaged
    assert two.updates == 3 * math.ceil(9 / 4)


def test_the_copy_of_gradients_that_are_averaged_may_be_the_peak():
    step = counted()
    two = memory_per_process(step, nn.Linear(2, 2), 2, shards=False)
    assert (two.peak_bytes, two.peak_place) == (5000, "averaging of gradients")
    assert two.at_peak[Purpose.COMMUNICATION] == step.gradient_bytes
    assert sum(two.at_peak.values()) == two.peak_bytes


def test_averaging_is_not_the_peak_where_activations_take_more():
    step = counted()
    step = replace(step, peak_bytes=6000, at_peak={**step.at_peak, Purpose.ACTIVATIONS: 2000})
    assert memory_per_process(step, nn.Linear(2, 2), 2, shards=False) is step


def test_shares_are_a_part_of_the_whole(config_dir, recipe):
    model = config_dir(num_hidden_layers=4)
    made = recipe(model=model, **{"data.train": "your/data", "data.max_length": 16})
    made = made.with_changes({"training.fsdp": True}, "the test")
    one, four = (plan(made, processes=n) for n in (1, 4))
    assert four.base_weights_bytes == pytest.approx(one.base_weights_bytes / 4, rel=0.02)
    assert four.optimizer_bytes == pytest.approx(one.optimizer_bytes / 4, rel=0.1)
    assert four.saved_activation_bytes == one.saved_activation_bytes
    assert four.peak_bytes < one.peak_bytes


def test_packed_weights_are_not_shared_out(recipe):
    made = recipe(**{"quantization": {"bits": 4}, "training.fsdp": True})
    packed = 0.5 * 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64)
    assert plan(made, processes=1000).base_weights_bytes > packed


def counted(**sizes):
    """Return a step of 1000 bytes of everything but `sizes`, all of them alive at the peak."""
    names = ("base_weights", "adapter", "gradient", "optimizer", "saved_activation", "logits")
    values = {f"{name}_bytes": 1000 for name in (*names, "temporary")} | sizes
    purposes = (Purpose.BASE, Purpose.ADAPTER, Purpose.GRADIENTS, Purpose.OPTIMIZER)
    at_peak = dict(zip(map(str, purposes), list(values.values())[:4], strict=True))
    return StepMemory(
        **values, peak_bytes=sum(at_peak.values()), peak_place="optimizer", at_peak=at_peak
    )


def test_one_process_has_what_was_counted():
    step = counted()
    assert memory_per_process(step, nn.Linear(2, 2), 1, shards=True) is step


def test_shards_are_padded_to_whole_rows_and_whole_parameters_are_gathered():
    class Block(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(4, 3, bias=False), Block(4, 5, bias=False))
    model._no_split_modules = ["Block"]
    model[0].requires_grad_(False)
    step = counted(base_weights_bytes=48, adapter_bytes=80, gradient_bytes=80, optimizer_bytes=160)
    one = memory_per_process(step, model, 2, shards=True)
    row = 4 * 4
    # Of 3 rows each process keeps 2, of 5 it keeps 3.
    assert one.base_weights_bytes == 2 * row
    assert one.adapter_bytes == one.gradient_bytes == 3 * row
    assert one.optimizer_bytes == 6 * row
    # The frozen layer outside of any block, and two blocks with their gradients.
    gathered = 3 * row + 2 * 2 * 5 * row
    assert one.at_peak[Purpose.COMMUNICATION] == gathered
    assert one.peak_bytes == (2 + 3 + 3 + 6) * row + gathered
    assert one.saved_activation_bytes == step.saved_activation_bytes

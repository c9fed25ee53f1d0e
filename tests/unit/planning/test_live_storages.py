"""Storages are counted while they live, views not twice."""

import pytest
import torch

from lorakit.planning.live_storages import LiveStorages, Purpose

KILO = 1024


@pytest.fixture
def storages():
    return LiveStorages("cpu", vocabulary=7)


def floats(kilobytes):
    return torch.zeros(kilobytes * KILO // 4)


def test_the_level_follows_births_and_deaths(storages):
    with storages:
        first = floats(4)
        second = first * 2
        del first
        third = second.view(2, -1)  # without its own storage
        assert storages.level_bytes == 4 * KILO
        del second, third
    assert (storages.level_bytes, storages.peak_bytes) == (0, 8 * KILO)


def test_the_peak_is_divided_up_by_what_is_known_later(storages):
    weights = floats(2)
    storages.adopt([weights], Purpose.BASE)
    with storages:
        kept = floats(3)
        storages.place = "here"
        floats(5)
        storages.place = "there"
        storages.assign([kept], Purpose.ACTIVATIONS)
        del kept
    assert storages.peak_place == "here"
    assert storages.peak_by_purpose() == {
        Purpose.BASE: 2 * KILO,
        Purpose.ACTIVATIONS: 3 * KILO,
        Purpose.TEMPORARY: 5 * KILO,
    }


def test_the_rest_is_what_nothing_is_known_of(storages):
    with storages:
        gradient, other = floats(1), floats(2)
        storages.assign([gradient], Purpose.GRADIENTS)
        storages.assign_rest(Purpose.ACTIVATIONS)
    assert storages.living_bytes() == {
        Purpose.GRADIENTS: KILO,
        Purpose.ACTIVATIONS: 2 * KILO,
    }
    del other


def test_what_was_there_before_is_not_counted_by_being_named(storages):
    before = floats(3)
    storages.assign([before], Purpose.TEMPORARY)
    assert storages.level_bytes == 0


def test_logits_are_known_by_their_width(storages):
    with storages:
        logits = torch.zeros(5, 7)
        indices = torch.zeros(5, 7, dtype=torch.int64)
    assert storages.living_bytes()[Purpose.LOGITS] == logits.numel() * 4
    del indices


def test_other_devices_are_not_counted(storages):
    with storages:
        there = torch.zeros(10, device="meta")
    assert storages.level_bytes == 0
    del there


def test_the_peak_begins_again(storages):
    with storages:
        floats(9)
        storages.forget_peak()
        floats(1)
    assert storages.peak_bytes == KILO

"""Tokens are counted without padding, and seconds without pauses."""

import time

import pytest
import torch

from lorakit.training.throughput import ThroughputMeter, real_tokens

CPU = torch.device("cpu")
IDS = torch.ones(2, 4, dtype=torch.long)
MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])


def test_padding_does_not_count():
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 1])}
    assert int(real_tokens(batch)) == 5
    del batch["attention_mask"]
    assert int(real_tokens(batch)) == 8


def test_examples_that_only_fill_up_a_batch_do_not_count():
    labels = torch.tensor([[1, 2, -100, -100], [-100] * 4])
    assert int(real_tokens({"input_ids": IDS, "attention_mask": MASK, "labels": labels})) == 4
    assert int(real_tokens({"input_ids": IDS, "labels": torch.tensor([-100, 1])})) == 4


def test_packed_texts_are_counted_by_their_positions():
    positions = torch.tensor([[0, 1, 0, 1, 2, 3, 0, 0]])  # texts of 2 and 4 tokens, then padding
    batch = {"input_ids": torch.ones_like(positions), "position_ids": positions}
    assert int(real_tokens({**batch, "labels": torch.ones_like(positions)})) == 6


def test_targets_of_a_decoder_count():
    meter = ThroughputMeter(has_targets=True, device=CPU)
    labels = torch.tensor([[1, 2], [3, -100]])
    meter.count([{"input_ids": IDS, "attention_mask": MASK, "labels": labels}])
    state = meter.state()
    assert (state["tokens"], state["positions"]) == (8, 12)


def test_the_clock_stands_still_until_the_next_start():
    meter = ThroughputMeter(has_targets=False, device=CPU)
    assert meter.total() is None
    meter.start()
    meter.count([{"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 1])}])
    meter.stop()
    seconds = meter.state()["seconds"]
    time.sleep(0.01)
    meter.stop()
    assert meter.state()["seconds"] == seconds > 0
    total = meter.total()
    assert total is not None
    assert (total.tokens, total.padding_share) == (5, 1 - 5 / 8)
    assert total.tokens_per_s == 5 / seconds

    resumed = ThroughputMeter(has_targets=False, device=CPU)
    resumed.load(meter.state())
    resumed.count([{"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 1])}])
    assert resumed.state() == {"tokens": 10, "positions": 16, "seconds": seconds}


def test_the_logged_names():
    meter = ThroughputMeter(has_targets=False, device=CPU)
    meter.load({"tokens": 60, "positions": 80, "seconds": 4.0})
    total = meter.total()
    assert total is not None
    expected = {"train_tokens": 60, "train_padding_share": 0.25, "train_tokens_per_s": 15.0}
    assert total.to_log() == pytest.approx(expected)


def test_the_speed_since_the_last_question():
    meter = ThroughputMeter(has_targets=False, device=CPU)
    assert meter.recent_tokens_per_s() is None
    meter.load({"tokens": 60, "positions": 80, "seconds": 4.0})
    assert meter.recent_tokens_per_s() is None  # before a resume
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": torch.tensor([0, 1])}
    meter.start()
    meter.count([batch])
    meter.stop()
    assert meter.recent_tokens_per_s() == pytest.approx(5 / (meter.state()["seconds"] - 4.0))
    assert meter.recent_tokens_per_s() is None

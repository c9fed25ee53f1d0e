"""Means of measures over batches."""

import torch

from lorakit.training.trainers import running_measures
from lorakit.training.trainers.running_measures import RunningMeasures


def test_means_over_batches_and_a_margin():
    running = RunningMeasures()
    assert running.means() == {}
    for value in (1.0, 5.0):
        pair = torch.tensor([value, 1.0])
        running.add({"chosen_reward": pair, "rejected_reward": pair / 2, "kl": torch.zeros(2)})
    assert running.means() == {"chosen_reward": 3, "rejected_reward": 3, "margin": 0}
    other = RunningMeasures()
    other.load(running.state())
    assert other.means() == running.means()


def test_a_process_that_measured_nothing_takes_part(monkeypatch):
    other = RunningMeasures()
    other.add({"accuracy": torch.tensor([1.0, 2.0])})
    monkeypatch.setattr(running_measures, "all_gather_object", lambda here: [here, other.state()])
    assert RunningMeasures().means() == {"accuracy": 0.5}

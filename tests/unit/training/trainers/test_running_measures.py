"""Means of measures over batches."""

from types import SimpleNamespace

import torch

from lorakit.training.trainers.running_measures import RunningMeasures

TRAINER = SimpleNamespace(
    args=SimpleNamespace(device="cpu"), accelerator=SimpleNamespace(reduce=lambda x, how: x)
)


def test_means_over_batches_and_a_margin():
    running = RunningMeasures()
    assert running.means(TRAINER) == {}
    for value in (1.0, 5.0):
        pair = torch.tensor([value, 1.0])
        running.add({"chosen_reward": pair, "rejected_reward": pair / 2, "kl": torch.zeros(2)})
    assert running.means(TRAINER) == {"chosen_reward": 3, "rejected_reward": 3, "margin": 0}
    other = RunningMeasures()
    other.load(running.state())
    assert other.means(TRAINER) == running.means(TRAINER)

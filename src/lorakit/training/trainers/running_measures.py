"""Means of what a step measures besides its loss, over batches and processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lorakit.training.step import Measures


class RunningMeasures:
    """Adds up measures where they are, and reads them only when asked for their means."""

    def __init__(self) -> None:
        """Begin with nothing."""
        self._sums: dict[str, Tensor] = {}

    def add(self, measures: Measures) -> None:
        """Add the sums and counts of a batch."""
        for name, pair in measures.items():
            self._sums[name] = pair + self._sums[name].to(pair) if name in self._sums else pair

    def means(self, trainer: Any) -> dict[str, float]:
        """Return the mean of each measure over all processes, which all call this.

        A measure that nothing has counted for is left out. The margin is that of the two rewards.
        """
        names = sorted(self._sums)
        if not names:
            return {}
        here = torch.stack([self._sums[name] for name in names]).to(trainer.args.device)
        total: Tensor = trainer.accelerator.reduce(here, "sum")
        found = {
            name: value / count
            for name, (value, count) in zip(names, total.tolist(), strict=True)
            if count
        }
        if {"chosen_reward", "rejected_reward"} <= found.keys():
            found["margin"] = found["chosen_reward"] - found["rejected_reward"]
        return found

    def state(self) -> dict[str, list[float]]:
        """Return the sums and counts of this process, for a checkpoint."""
        return {name: pair.tolist() for name, pair in self._sums.items()}

    def load(self, state: Mapping[str, list[float]]) -> None:
        """Continue from the sums of a checkpoint."""
        self._sums = {name: torch.tensor(pair) for name, pair in state.items()}

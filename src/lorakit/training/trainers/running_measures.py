"""Means of what a step measures besides its loss, over batches and processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lorakit.distributed.processes import all_gather_object
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

    def means(self) -> dict[str, float]:
        """Return the mean of each measure over all processes, which all call this.

        A process without an example that counts may have measured nothing. A measure that nothing
        has counted for is left out. The margin is that of the two rewards.
        """
        totals: dict[str, tuple[float, float]] = {}
        for state in all_gather_object(self.state()):
            for name, (value, count) in state.items():
                sum_before, count_before = totals.get(name, (0.0, 0.0))
                totals[name] = (sum_before + value, count_before + count)
        found = {name: value / count for name, (value, count) in sorted(totals.items()) if count}
        if {"chosen_reward", "rejected_reward"} <= found.keys():
            found["margin"] = found["chosen_reward"] - found["rejected_reward"]
        return found

    def state(self) -> dict[str, list[float]]:
        """Return the sums and counts of this process, for a checkpoint."""
        if not self._sums:
            return {}
        read = torch.stack(list(self._sums.values())).tolist()  # at once from the device
        return dict(zip(self._sums, read, strict=True))

    def load(self, state: Mapping[str, list[float]]) -> None:
        """Continue from the sums of a checkpoint."""
        self._sums = {name: torch.tensor(pair) for name, pair in state.items()}

"""Count the tokens of a run without padding, and the seconds they take."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorakit.config import NOT_COUNTED
from lorakit.distributed.processes import all_gather_object, process_count
from lorakit.training.evaluation_metrics import TOKENS_PER_S


@dataclass(frozen=True)
class Throughput:
    """How many tokens a run was trained on, and how quickly."""

    tokens: int
    """Tokens of all processes and epochs, without padding."""
    padding_share: float
    """Share of the tokens of all batches that was padding, from 0 to 1."""
    tokens_per_s: float
    """Tokens without padding per second of training, without evaluations and checkpoints."""

    def to_log(self) -> dict[str, float]:
        """Return the values by the names under which a run logs them."""
        return {
            "train_tokens": self.tokens,
            "train_padding_share": round(self.padding_share, 6),
            TOKENS_PER_S: round(self.tokens_per_s, 3),
        }


class ThroughputMeter:
    """Counts tokens where the batches are, and reads the counts only when asked for.

    A GPU is therefore not waited for in a step.
    """

    def __init__(self, *, has_targets: bool, device: torch.device) -> None:
        """Make a meter that has counted nothing.

        Args:
            has_targets: Whether labels are sequences apart from the inputs, as with a decoder.
            device: The device of training.
        """
        self._has_targets, self._device = has_targets, device
        self._tokens: Tensor | int = 0
        self._positions: Tensor | int = 0
        self._seconds = 0.0
        self._started_s: float | None = None
        self._reported = (0, 0.0)

    def start(self) -> None:
        """Start the clock, or let it run on."""
        if self._started_s is None:
            self._started_s = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock once the device has done what it was given."""
        if self._started_s is not None:
            if self._device.type != "cpu":
                torch.accelerator.synchronize(self._device)
            self._seconds += time.perf_counter() - self._started_s
            self._started_s = None

    def count(self, batches: Sequence[Any]) -> None:
        """Count the tokens of batches, with and without padding."""
        for batch in batches:
            if "input_ids" not in batch:  # the model takes something other than tokens
                continue
            counts, widths = counted_rows(batch), [batch["input_ids"][0].numel()]
            self._tokens = self._tokens + real_tokens(batch)
            if self._has_targets:
                self._tokens = self._tokens + (batch["labels"] != NOT_COUNTED).sum()
                widths.append(batch["labels"].shape[-1])
            self._positions = self._positions + counts.sum() * sum(widths)

    def state(self) -> dict[str, float]:
        """Return the counts of this process, for a checkpoint."""
        seconds = self._seconds
        if self._started_s is not None:
            seconds += time.perf_counter() - self._started_s
        tokens, positions = int(self._tokens), int(self._positions)
        return {"tokens": tokens, "positions": positions, "seconds": seconds}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from the counts of a checkpoint."""
        self._tokens, self._positions = state["tokens"], state["positions"]
        self._seconds = state["seconds"]
        self._reported = (int(state["tokens"]), state["seconds"])

    def recent_tokens_per_s(self) -> float | None:
        """Return the speed since the last call, or None if nothing was counted.

        A GPU is waited for; call this where the loss is read as well. Other processes count for
        as many tokens as this one.
        """
        state = self.state()
        tokens, seconds = state["tokens"], state["seconds"]
        before_tokens, before_s = self._reported
        self._reported = (tokens, seconds)
        if tokens <= before_tokens or seconds <= before_s:
            return None
        return process_count() * (tokens - before_tokens) / (seconds - before_s)

    def total(self) -> Throughput | None:
        """Return the throughput of all processes, each of which calls this; None of no step."""
        states = all_gather_object(self.state())
        tokens, positions = (sum(one[key] for one in states) for key in ("tokens", "positions"))
        seconds = max(one["seconds"] for one in states)
        if not positions or not seconds:
            return None
        return Throughput(int(tokens), 1 - tokens / positions, tokens / seconds)


def real_tokens(batch: Mapping[str, Any]) -> Tensor:
    """Return the number of input tokens without padding, a tensor on the batch's device."""
    mask: Tensor | None = batch.get("attention_mask")
    positions: Tensor | None = batch.get("position_ids")
    if mask is None and positions is not None:
        # Each packed text has positions 0 and 1, padding has only position 0.
        mask = (positions > 0).int() + (positions == 1).int()
    elif mask is None:
        mask = torch.ones_like(batch["input_ids"])
    return (mask.flatten(1) * counted_rows(batch)).sum()


def counted_rows(batch: Mapping[str, Any]) -> Tensor:
    """Return which batch rows have a counted label, (rows, 1).

    The others only pad the batches of several processes to the same number.
    """
    labels: Tensor = batch["labels"]
    return is_counted(labels).view(len(labels), -1).any(-1, keepdim=True)


def is_counted(labels: Tensor) -> Tensor:
    """Return which labels count: ids other than -100, and numbers other than NaN."""
    return ~labels.isnan() if labels.is_floating_point() else labels != NOT_COUNTED


def not_counted(labels: Tensor) -> float:
    """Return the value of a label that does not count, among labels of this dtype."""
    return math.nan if labels.is_floating_point() else NOT_COUNTED

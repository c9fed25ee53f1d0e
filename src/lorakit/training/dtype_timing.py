"""Time forward and backward of a recipe's model in several precisions, on one batch."""

from __future__ import annotations

import copy
import statistics
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorakit.data.like_length import token_lengths
from lorakit.distributed.processes import run_on_main
from lorakit.files.atomic import scratch_directory
from lorakit.training.dtype_choice import Precision

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from lorakit.training.tasks import Encoded

_BUDGET_S = 1.5
"""Seconds of rounds after the first; a first round that takes longer is the only one."""

_MOST_ROUNDS = 9

_MOST_TOKENS = 1024
"""Tokens of the batch, if its examples allow; more take longer and show no more."""


def time_alternately(
    steps: Mapping[Precision, Callable[[], float]],
) -> dict[Precision, float]:
    """Return the median seconds of each step, after a first round that warms up.

    In each round every step runs once, so that whatever else the machine does slows all alike.
    Processes that train together run the same rounds, at the same time, as they will in training.

    Args:
        steps: Functions that run a step and return its seconds.
    """
    first = {precision: step() for precision, step in steps.items()}
    rounds = run_on_main(lambda: rounds_after(sum(first.values())))
    times = {precision: [] if rounds else [seconds] for precision, seconds in first.items()}
    for _ in range(rounds):
        for precision, step in steps.items():
            times[precision].append(step())
    return {precision: statistics.median(seconds) for precision, seconds in times.items()}


def rounds_after(first_s: float) -> int:
    """Return the number of rounds to measure after a first one.

    >>> rounds_after(0.1), rounds_after(0.6), rounds_after(30.0)
    (9, 2, 0)
    """
    return min(int(_BUDGET_S / first_s), _MOST_ROUNDS)


def batch_of(encoded: Encoded, collator: Any, rows: int) -> dict[str, Tensor]:
    """Return a batch of examples of like length: half of all tokens are in longer ones.

    Args:
        encoded: The tokenized examples.
        collator: Makes a batch of examples.
        rows: Examples of a batch in training; fewer are taken of long ones.
    """
    dataset: Any = encoded.train
    lengths = token_lengths(dataset)[:, 0].tolist()
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    before = list(accumulate(lengths[index] for index in order))
    middle = bisect_left(before, before[-1] / 2)
    tokens = max(lengths[order[middle]], 1)
    rows = min(rows, len(order), max(_MOST_TOKENS // tokens, 1))
    first = min(max(middle - rows // 2, 0), len(order) - rows)
    batch = collator([dict(dataset[index]) for index in order[first : first + rows]])
    return {key: value for key, value in batch.items() if isinstance(value, Tensor)}


def batch_step(
    model: Any, precision: Precision, batch: Mapping[str, Tensor]
) -> Callable[[], float]:
    """Return a function that runs forward and backward, and returns the seconds.

    Args:
        model: A model with an adapter.
        precision: The precision of the model.
        batch: A batch with labels.
    """
    device = next(model.parameters()).device

    def step() -> float:
        model.train()
        started_s = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision.autocasts):
            loss = model(**batch).loss
        loss.backward()
        duration_s = time.perf_counter() - started_s
        model.zero_grad(set_to_none=True)
        return duration_s

    return step


def time_precisions(
    models: Mapping[Precision, nn.Module],
    encoded: Encoded,
    arguments: TrainingArguments,
    build_trainer: Callable[[nn.Module, TrainingArguments], Any],
) -> dict[Precision, float]:
    """Return the seconds of a forward and backward in each precision, on the CPU.

    Args:
        models: The model with its adapter, loaded in each precision.
        encoded: The tokenized examples.
        arguments: Training arguments of the run.
        build_trainer: Builds the trainer, which has the collator.
    """
    model = next(iter(models.values()))
    with scratch_directory("lorakit-dtype-") as scratch:  # a trainer creates its output directory
        trainer = build_trainer(model, _quiet(arguments, str(scratch)))
    # An objective's batches are not inputs of the model.
    collator = getattr(trainer, "timed_collator", trainer.data_collator)
    batch = batch_of(encoded, collator, arguments.per_device_train_batch_size)
    with torch.random.fork_rng(devices=()):
        warm_up(models, batch)
        return time_alternately({p: batch_step(m, p, batch) for p, m in models.items()})


def warm_up(models: Mapping[Precision, nn.Module], batch: Mapping[str, Tensor]) -> None:
    """Run one example in each precision, so that what happens once is in no time.

    On a new machine the first product compiles lorakit's C, which takes longer than all rounds.
    """
    example = {key: value[:1] for key, value in batch.items()}
    for precision, model in models.items():
        batch_step(model, precision, example)()


def _quiet(arguments: TrainingArguments, output: str) -> TrainingArguments:
    """Return arguments of a trainer that neither evaluates, nor writes, nor reports."""
    quiet = copy.copy(arguments)
    quiet.output_dir = output
    quiet.report_to = []
    quiet.load_best_model_at_end = False
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        setattr(quiet, name, type(getattr(quiet, name))("no"))
    return quiet

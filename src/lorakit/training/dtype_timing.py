"""Time forward and backward of a recipe's model in several precisions, on batches of its data."""

from __future__ import annotations

import copy
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorakit.data.like_length import token_lengths
from lorakit.distributed.processes import run_on_main
from lorakit.files.atomic import scratch_directory
from lorakit.models.padded_lengths import length_multiple
from lorakit.training.dtype_choice import Precision
from lorakit.training.trainers.batching import padding_to_multiples

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from lorakit.training.tasks import Encoded

_BUDGET_S = 4.0
"""CPU seconds of rounds after the first; a first round that takes longer is the only one."""

_MOST_ROUNDS = 9

_QUANTILES = (0.25, 0.75)
"""Shares of all tokens that are in shorter examples than those of a batch."""

_MOST_TOKENS = 768
"""Tokens of a batch, if its examples allow; more take longer and show no more."""


def time_alternately(
    steps: Sequence[Mapping[Precision, Callable[[], float]]],
) -> dict[Precision, float]:
    """Return the least seconds of a step on each batch, summed over the batches.

    A first round warms up: it compiles what a length needs. In each round every step runs once, so
    that whatever else the machine does slows all alike; it only ever adds to the least time.
    Processes that train together run the same rounds, at the same time, as they will in training.

    Args:
        steps: For each batch, functions that run a step and return its seconds.
    """
    times = [{precision: step() for precision, step in batch.items()} for batch in steps]
    rounds = run_on_main(lambda: rounds_after(sum(sum(batch.values()) for batch in times)))
    if rounds:
        times = [{precision: math.inf for precision in batch} for batch in steps]
    for _ in range(rounds):
        for batch, least in zip(steps, times, strict=True):
            for precision, step in batch.items():
                least[precision] = min(least[precision], step())
    return {precision: sum(least[precision] for least in times) for precision in times[0]}


def rounds_after(first_s: float) -> int:
    """Return the number of rounds to measure after a first one.

    >>> rounds_after(0.1), rounds_after(0.6), rounds_after(30.0)
    (9, 6, 0)
    """
    return min(int(_BUDGET_S / first_s), _MOST_ROUNDS)


def batches_of(encoded: Encoded, rows: int) -> list[list[dict[str, Any]]]:
    """Return examples of like length for a batch of short and one of long examples.

    Args:
        encoded: The tokenized examples.
        rows: Examples of a batch in training; fewer are taken of long ones.
    """
    dataset: Any = encoded.train
    lengths = token_lengths(dataset)[:, 0].tolist()
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    before = list(accumulate(lengths[index] for index in order))
    batches = []
    for share in _QUANTILES:
        middle = bisect_left(before, before[-1] * share)
        tokens = max(lengths[order[middle]], 1)
        count = min(rows, len(order), max(_MOST_TOKENS // tokens, 1))
        first = min(max(middle - count // 2, 0), len(order) - count)
        batches.append([dict(dataset[index]) for index in order[first : first + count]])
    return batches


def batch_step(
    model: Any, precision: Precision, batch: Mapping[str, Tensor]
) -> Callable[[], float]:
    """Return a function that runs forward and backward, and returns the CPU seconds.

    Those of the clock would depend on what else the machine does.

    Args:
        model: A model with an adapter.
        precision: The precision of the model.
        batch: A batch with labels.
    """
    device = next(model.parameters()).device

    def step() -> float:
        model.train()
        started_s = time.process_time()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision.autocasts):
            loss = model(**batch).loss
        loss.backward()
        duration_s = time.process_time() - started_s
        model.zero_grad(set_to_none=True)
        return duration_s

    return step


def time_precisions(
    models: Mapping[Precision, nn.Module],
    encoded: Encoded,
    arguments: TrainingArguments,
    build_trainer: Callable[[nn.Module, Encoded, TrainingArguments], Any],
) -> dict[Precision, float]:
    """Return the CPU seconds of a forward and backward in each precision.

    The batches are made as each precision has them in training, with its padding.

    Args:
        models: The model with its adapter, loaded in each precision.
        encoded: The tokenized examples.
        arguments: Training arguments of the run.
        build_trainer: Builds the trainer, which has the collator.
    """
    model = next(iter(models.values()))
    with scratch_directory("lorakit-dtype-") as scratch:  # a trainer creates its output directory
        trainer = build_trainer(model, encoded, _quiet(arguments, str(scratch)))
    plain = trainer.data_collator

    def inputs(examples: list[dict[str, Any]], precision: Precision) -> dict[str, Tensor]:
        model: Any = models[precision]
        multiple = length_multiple(model, autocasts=precision.autocasts)
        trainer.data_collator = padding_to_multiples(plain, multiple)
        batch = trainer.timed_batch(examples)
        return {key: value for key, value in batch.items() if isinstance(value, Tensor)}

    steps = [
        {p: batch_step(model, p, inputs(examples, p)) for p, model in models.items()}
        for examples in batches_of(encoded, arguments.per_device_train_batch_size)
    ]
    with torch.random.fork_rng(devices=()):
        return time_alternately(steps)


def _quiet(arguments: TrainingArguments, output: str) -> TrainingArguments:
    """Return arguments of a trainer that neither evaluates, nor writes, nor reports."""
    quiet = copy.copy(arguments)
    quiet.output_dir = output
    quiet.report_to = []
    quiet.load_best_model_at_end = False
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        setattr(quiet, name, type(getattr(quiet, name))("no"))
    return quiet

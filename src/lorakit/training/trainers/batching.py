"""Give a trainer batches of examples of like length, and measure what padding is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import has_length

from lorakit.data.like_length import (
    LikeLengthSampler,
    longest_first,
    padding_share,
    token_lengths,
)
from lorakit.data.mixture import Mixture, MixtureSampler
from lorakit.data.stream import EncodedStream
from lorakit.distributed.processes import process_count
from lorakit.models.padded_lengths import length_multiple
from lorakit.training.throughput import Throughput, ThroughputMeter

if TYPE_CHECKING:
    from torch.utils.data import Sampler
    from transformers import TrainingArguments

    _Base = Trainer
else:
    _Base = object

GROUP_BY_LENGTH = "group_by_length"
"""The value of `training.train_sampling_strategy` that asks for batches of like length."""


class BatchingMixin(_Base):
    """Mixin for a trainer class whose batches have examples of like length, if requested.

    transformers' sampler draws its order from the random numbers of training, sorts by inputs
    alone, and begins with the longest examples of each part of an epoch; see `LikeLengthSampler`.
    """

    mixture: Mixture | None = None
    """How often an epoch has each training example; None is once."""
    stream: EncodedStream | None = None
    """The examples to train on where they are read when needed, instead of `train_dataset`."""
    throughput: Throughput | None = None
    """The throughput of the finished training."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        model: Any = self.model
        has_targets = bool(getattr(model.config, "is_encoder_decoder", False))
        self.meter = ThroughputMeter(has_targets=has_targets, device=self.args.device)
        multiple = length_multiple(model, autocasts=self.args.bf16)
        self.data_collator = padding_to_multiples(self.data_collator, multiple)

    # ---- order ----

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return batches for training."""
        if self.stream is None:
            return super().get_train_dataloader()
        self.accelerator.dataloader_config.dispatch_batches = False  # one process needs no copies
        self.stream = self.stream.seeded(seed(self.args))
        batches = DataLoader(
            self.stream,
            batch_size=self.args.train_batch_size,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self.accelerator.prepare(batches)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.mixture is not None and has_length(dataset):
            is_grouped = self.args.train_sampling_strategy == GROUP_BY_LENGTH
            lengths = token_lengths(dataset) if is_grouped else None
            return MixtureSampler(self.mixture, lengths, step_examples(self.args), seed(self.args))
        if self.args.train_sampling_strategy != GROUP_BY_LENGTH or not has_length(dataset):
            return super()._get_train_sampler(train_dataset)
        return LikeLengthSampler(token_lengths(dataset), step_examples(self.args), seed(self.args))

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if self.args.train_sampling_strategy != GROUP_BY_LENGTH or not has_length(eval_dataset):
            return super()._get_eval_sampler(eval_dataset)
        return longest_first(token_lengths(eval_dataset)).tolist()

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return batches of all validation examples; transformers may leave out the last ones."""
        with temporarily(self.args, dataloader_drop_last=False):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader[Any]:
        """Return batches for `predict`, whose predictions have the order of the examples."""
        changed = {"train_sampling_strategy": "random", "dataloader_drop_last": False}
        with temporarily(self.args, **changed):
            return super().get_test_dataloader(test_dataset)

    def _run_epoch(self, **arguments: Any) -> None:
        # accelerate passes the epoch on to the sampler, but not of several processes that resume.
        sampler = example_sampler(arguments["train_dataloader"])
        if isinstance(sampler, LikeLengthSampler):
            sampler.set_epoch(arguments["epoch"])
        super()._run_epoch(**arguments)

    # ---- throughput ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """Take the batches of a step, and count their tokens."""
        self.meter.start()
        batches, counted = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.meter.count(batches)
        return batches, counted

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate; this is no training time."""
        self.meter.stop()
        return super().evaluate(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.meter.stop()
        super()._save_checkpoint(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        self.meter.stop()
        self.throughput = self.meter.total()
        return super()._finalize_training(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log; with the mean training loss also the throughput."""
        if "train_loss" in logs and self.throughput is not None:
            logs = {**logs, **self.throughput.to_log()}
        super().log(logs, *args, **kwargs)


def step_examples(arguments: TrainingArguments) -> int:
    """Return the number of examples of an optimizer step, in all processes."""
    batches = arguments.gradient_accumulation_steps * process_count()
    return arguments.train_batch_size * batches


def seed(arguments: TrainingArguments) -> int:
    """Return the seed of the examples' order."""
    return arguments.seed if arguments.data_seed is None else arguments.data_seed


def pads_nothing(training: Mapping[str, Any]) -> bool:
    """Whether training arguments put examples together into sequences that hold no padding."""
    return bool(training.get("packing") or training.get("padding_free"))


def padding_to_multiples(collator: Any, multiple: int | None) -> Any:
    """Return a collator that pads to multiples of a number of tokens.

    Args:
        collator: A collator; one that already pads to multiples, or cannot, is returned.
        multiple: Number of tokens; None for any length.
    """
    if multiple is None or getattr(collator, "pad_to_multiple_of", multiple) is not None:
        return collator
    return replace(collator, pad_to_multiple_of=multiple)


def padding_notes(
    examples: Any, arguments: TrainingArguments, multiple: int | None = None
) -> tuple[str, ...]:
    """Return notes on what batches are padded to, and on the padding in random batches and others.

    Both are counted in the first epoch of these examples.

    Args:
        examples: The encoded examples.
        arguments: The training arguments.
        multiple: Number of tokens that the trainer's collator pads to a multiple of.
    """
    if pads_nothing(vars(arguments)) or not has_length(examples):
        return ()
    lengths = token_lengths(examples)
    batch = arguments.train_batch_size
    generator = torch.Generator().manual_seed(seed(arguments))
    shuffled = torch.randperm(len(lengths), generator=generator)
    grouped = LikeLengthSampler(lengths, step_examples(arguments), seed(arguments)).order()
    at_random, alike = (
        f"{padding_share(lengths, order, batch, multiple or 1):.0%}"
        for order in (shuffled, grouped)
    )
    notes: tuple[str, ...] = ()
    if multiple is not None and getattr(arguments, "pad_to_multiple_of", None) is None:
        notes = (
            f"Batches are padded to multiples of {multiple} tokens: a CPU compiles products of "
            "bfloat16 for each length, and keeps them.",
        )
    if at_random == alike:
        return notes
    if arguments.train_sampling_strategy == GROUP_BY_LENGTH:
        return (
            *notes,
            f"Padding: {at_random} of the tokens in random batches, {alike} in these batches of "
            "like length.",
        )
    return (
        *notes,
        f"Padding: {at_random} of the tokens in random batches. "
        f"training.train_sampling_strategy={GROUP_BY_LENGTH} would make it {alike}.",
    )


def example_sampler(loader: Any) -> Any:
    """Return the sampler of single examples, of which batches are made, skipped and shared out."""
    batches: Any = getattr(loader, "batch_sampler", None)
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    return getattr(batches, "sampler", None)


@contextmanager
def temporarily(instance: Any, **values: Any) -> Iterator[None]:
    """Give an object other values of some attributes inside the block."""
    before = {name: getattr(instance, name) for name in values}
    vars(instance).update(values)
    try:
        yield
    finally:
        vars(instance).update(before)

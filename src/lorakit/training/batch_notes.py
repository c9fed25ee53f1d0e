"""What is to be known of the batches of a run before it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lorakit.distributed.processes import process_count

if TYPE_CHECKING:
    from transformers import TrainingArguments


def batch_notes(arguments: TrainingArguments, *, is_sharded: bool) -> tuple[str, ...]:
    """Say how many rows a step has in several processes, and where GPUs are left idle."""
    batch, count = arguments.per_device_train_batch_size, process_count()
    accumulated = arguments.gradient_accumulation_steps
    if count > 1:
        rows = batch * count * accumulated
        sharded = (f"The model is sharded over {count} processes (FSDP2).",) if is_sharded else ()
        return (
            *sharded,
            f"Each step is about {rows} rows: {batch} in a batch, {count} processes, "
            f"{accumulated} {'batch' if accumulated == 1 else 'batches'} accumulated.",
        )
    gpus = torch.cuda.device_count()
    if gpus > 1 and arguments.device.type == "cuda":
        return (
            f"One of {gpus} GPUs is used. To use all: torchrun --nproc-per-node {gpus} "
            "-m lorakit train ...",
        )
    return ()

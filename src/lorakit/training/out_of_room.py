"""Errors of a run whose disk is full or whose memory ran out, with what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from lorakit.errors import DiskError, TrainingError
from lorakit.files.disks import disk_error
from lorakit.recipes import checkpoints
from lorakit.recipes.run_directory import RunDirectory


@contextmanager
def explaining_disk_errors(path: Path) -> Iterator[None]:
    """Add to an error about a full or read-only disk how the run can be resumed.

    Raises:
        DiskError: The disk of the run directory, or of a cache, could not be written to.
    """
    try:
        yield
    except Exception as error:
        explained = error if isinstance(error, DiskError) else disk_error(error, path)
        if explained is None:
            raise
        raise DiskError(f"{explained} {_resume_hint(path)}") from error


def _resume_hint(path: Path) -> str:
    if not RunDirectory(path).recipe_file.exists():
        return "The run has not started."
    checkpoint = checkpoints.newest_complete(path)
    if checkpoint is None:
        return "No checkpoint is complete yet: with --resume the run starts over."
    return f"{checkpoint} is complete: with --resume the run continues from it."


@contextmanager
def explaining_memory_errors(batch_size: int) -> Iterator[None]:
    """Say how a training step takes less memory, where it ran out.

    Args:
        batch_size: Examples of a micro-batch.

    Raises:
        TrainingError: Memory ran out.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            f"Memory ran out with training.per_device_train_batch_size={batch_size}. Halve it and "
            "double training.gradient_accumulation_steps, set training.activation_checkpointing="
            f"true, or lower data.max_length. ({str(error).splitlines()[0]})"
        ) from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an accelerator or the CPU's allocator ran out of memory.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: ..."))
    True
    """
    cpu = "DefaultCPUAllocator"
    return isinstance(error, torch.OutOfMemoryError) or cpu in str(error)

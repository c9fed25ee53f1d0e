"""Tokenize examples once per machine: its other processes map the result from disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from datasets import Dataset

from lorakit.data import hiding_progress_bars
from lorakit.distributed.processes import (
    broadcast_from_local_rank_zero,
    is_local_rank_zero,
    process_count,
    run_on_all,
)
from lorakit.files.atomic import lasting_scratch_directory, scratch_directory
from lorakit.training.tasks import Encoded

_PREFIX = "lorakit-rows-"
_DATASETS = ("train", "validation")


def encode_once_per_machine(encode: Callable[[], Encoded], *, keep_files: bool = False) -> Encoded:
    """Return the tokenized examples, which one process per machine encodes.

    It writes them to a temporary directory that all processes map, so they are in memory once.

    Args:
        encode: Encodes the examples.
        keep_files: Whether to keep the directory until the program ends, for processes that open it
            later; else it is deleted as soon as all have mapped its files.

    Raises:
        Exception: The error of `encode`, raised in every process.
    """
    if process_count() == 1:
        return encode()
    with ExitStack() as until_mapped:
        folder = None
        if is_local_rank_zero():
            if keep_files:
                folder = lasting_scratch_directory(_PREFIX)
            else:
                folder = until_mapped.enter_context(scratch_directory(_PREFIX))
        local = run_on_all(lambda: None if folder is None else _write(encode(), folder))
        written: tuple[Path, dict[str, Any]] = broadcast_from_local_rank_zero(local)
        return run_on_all(lambda: _read(*written))


def _write(encoded: Encoded, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Write the examples; return where they are, and the other fields."""
    with hiding_progress_bars():
        encoded.train.save_to_disk(folder / "train")
        if encoded.validation is not None:
            encoded.validation.save_to_disk(folder / "validation")
    rest = {name: value for name, value in vars(encoded).items() if name not in _DATASETS}
    return folder, rest


def _read(folder: Path, rest: dict[str, Any]) -> Encoded:
    train, validation = (folder / name for name in _DATASETS)
    return Encoded(
        Dataset.load_from_disk(train),
        Dataset.load_from_disk(validation) if validation.is_dir() else None,
        **rest,
    )

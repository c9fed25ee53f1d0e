"""Tokenize examples once per machine: its other processes map the result from disk."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
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


@dataclass(frozen=True)
class _Written:
    """Files that one process has written for the others on its machine."""

    folder: Path
    has_validation: bool
    rest: dict[str, Any]
    """The other fields of `Encoded`."""


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
        written: _Written = broadcast_from_local_rank_zero(local)
        return run_on_all(lambda: _read(written))


def _write(encoded: Encoded, folder: Path) -> _Written:
    with hiding_progress_bars():
        encoded.train.save_to_disk(folder / "train")
        if encoded.validation is not None:
            encoded.validation.save_to_disk(folder / "validation")
    rest = {name: value for name, value in vars(encoded).items() if name not in _DATASETS}
    return _Written(folder, encoded.validation is not None, rest)


def _read(written: _Written) -> Encoded:
    train = Dataset.load_from_disk(written.folder / "train")
    has = written.has_validation
    validation = Dataset.load_from_disk(written.folder / "validation") if has else None
    return Encoded(train, validation, **written.rest)

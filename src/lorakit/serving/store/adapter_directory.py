"""What the files of an adapter's directory say before any tensor is read."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.adapters.peft_files.files import CONFIG_FILE, read_adapter_header
from lorakit.adapters.peft_files.format import config_from_peft
from lorakit.inference.loaded import companions_of
from lorakit.serving.base_models import TASKS_WITH_LABELS, ModelKind
from lorakit.serving.store.values import FilesKey

_OF_RUN = "adapter"
"""The directory of the adapter in a run directory."""

_SETTLED_S = 2.0
"""Age of the newest file at which nobody is writing the directory any more."""

_HEAD_WEIGHT = re.compile(r"(^|\.)(score|classifier|out_proj|output)(\.modules_to_save)?\.weight$")


@dataclass(frozen=True)
class AdapterFacts:
    """What the files of an adapter say, and what it needs of the base.

    Attributes:
        kind: Its task and labels; None if the files do not say.
        base: The base that it names.
        settings: The settings of its training.
        trained_in_full: Modules that it replaces.
        rank: Largest rank of the updates; None if there are none.
        elements: Number of elements of all its tensors.
    """

    kind: ModelKind | None = None
    base: str | None = None
    settings: InferenceSettings = field(default_factory=InferenceSettings)
    trained_in_full: tuple[str, ...] = ()
    rank: int | None = None
    elements: int = 0


def adapter_directory(path: Path) -> Path | None:
    """Return the directory of the adapter's files for an adapter or a run; None for others."""
    for place in (path, path / _OF_RUN):
        if os.path.isfile(place / CONFIG_FILE):
            return place
    return None


def files_key(directory: Path) -> FilesKey:
    """Return what changes whenever a file is written that affects answers.

    Raises:
        OSError: The directory cannot be read.
    """
    found = _files_in(directory)
    companions = companions_of(directory)
    if companions != directory:
        found += _files_in(companions)
    return tuple(sorted(found))


def _files_in(directory: Path) -> list[tuple[str, int, int, int]]:
    found = []
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_file():
                    is_now = os.stat(entry.path)
                    found.append((entry.name, is_now.st_size, is_now.st_mtime_ns, is_now.st_ino))
            except FileNotFoundError:  # replaced at this moment
                continue
    return found


def may_be_written(directory: Path) -> bool:
    """Return whether a file of a directory, or the directory, changed within the last seconds."""
    try:
        looked_at = [directory, *(entry for entry in directory.iterdir() if entry.is_file())]
    except OSError:  # it is just being replaced, or is gone
        looked_at = [directory.parent]
    changed = [0.0]
    for path in looked_at:
        with suppress(OSError):
            changed.append(path.stat().st_ctime)
    return time.time() - max(changed) < _SETTLED_S


def read_facts(directory: Path) -> AdapterFacts:
    """Return what the files of an adapter say; no tensor is read.

    Raises:
        MissingFileError: One of the files does not exist.
        AdapterFileError: A file is damaged, or uses a feature that lorakit does not support.
        ConfigError: A value of the configuration is out of range.
    """
    values, entries = read_adapter_header(directory)
    config = config_from_peft(values, str(directory))
    settings = InferenceSettings.load(companions_of(directory))
    task, labels = config.task_type or settings.task_type, settings.labels
    heads = [one.shape[0] for key, one in entries.items() if _HEAD_WEIGHT.search(key)]
    number = None
    if task in TASKS_WITH_LABELS:
        number = len(labels) if labels is not None else heads[-1] if heads else None
    base = values.get("base_model_name_or_path")
    of_A = [one.shape for key, one in entries.items() if ".lora_A" in key or "embedding_A" in key]
    return AdapterFacts(
        kind=None if task is None else ModelKind(task, number),
        base=base if isinstance(base, str) and base else None,
        settings=settings,
        trained_in_full=tuple(config.modules_to_save or ()),
        rank=max((shape[0] for shape in of_A if shape), default=None),
        elements=sum(entry.elements for entry in entries.values()),
    )

"""The adapters below a directory, and what their files and their analysis say; without torch."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

from lorakit.errors import AdapterFileError, escaped
from lorakit.files.json_files import parse_json_object, read_json_object
from lorakit.runs.paths import is_utf8

CONFIG_FILE, WEIGHTS_FILE, SETTINGS_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "lorakit.json",
)
_DEEPEST = 8
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}


@dataclass(frozen=True)
class StoredTensor:
    """Dtype and shape of a tensor in a file."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in the file."""
        return self.elements * _BYTES.get(self.dtype, 4)


@dataclass(frozen=True)
class AdapterFacts:
    """An adapter as its files describe it.

    Attributes:
        name: Path of its run, or of its directory, below the root.
        directory: The directory with its two files.
        modified_s: Time of its last change, in seconds since 1970.
        base: The base that it names.
        task: Its task.
        labels: Names of its labels.
        format: Layout of its training examples.
        takes_pairs: Whether an input is a pair of texts.
        dtype: dtype of the base in training; None if it was quantized or is unknown.
        bits: Bits of the base's weights in training; None if it was not quantized.
        ranks: The ranks of its modules, ascending.
        modules: Number of adapted modules.
        parameters: Number of all its parameters.
        size_bytes: Size of its tensors file.
        settings: Values of adapter_config.json that are set.
        problem: Why it cannot be read, or None.
    """

    name: str
    directory: Path
    modified_s: float = 0.0
    base: str | None = None
    task: str | None = None
    labels: tuple[str, ...] = ()
    format: str | None = None
    takes_pairs: bool = False
    dtype: str | None = None
    bits: int | None = None
    ranks: tuple[int, ...] = ()
    modules: int = 0
    parameters: int = 0
    size_bytes: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    problem: str | None = None

    @property
    def run(self) -> Path | None:
        """The run directory that it lies in, if it does."""
        parent = self.directory.parent
        is_inner = self.directory.name == "adapter" and (parent / "recipe.yaml").is_file()
        return parent if is_inner else None

    @property
    def place(self) -> Path:
        """The run, or the directory of an adapter outside of a run: what commands are given."""
        return self.run or self.directory

    @property
    def is_updates_only(self) -> bool:
        """Whether it has low-rank updates alone, without a head or biases trained in full."""
        is_biased = self.settings.get("bias", "none") != "none"
        return not (self.labels or self.settings.get("modules_to_save") or is_biased)

    @property
    def analysis_folder(self) -> Path:
        """Where `lorakit analyze` writes by default."""
        if self.run is not None:
            return self.run / "analysis"
        return self.directory.parent / f"{self.directory.name}-analysis"


def find_adapters(root: Path) -> list[AdapterFacts]:
    """Return the adapters below a directory, the newest first; damaged ones have a problem.

    Checkpoints of runs, hidden directories and links to directories are left out.
    """
    found = [read_adapter(root, directory) for directory in _adapter_directories(root)]
    return sorted(found, key=lambda each: (-each.modified_s, each.name))


def read_adapter(root: Path, directory: Path) -> AdapterFacts:
    """Return what the files of one adapter say; the problem is set if they cannot be read."""
    place = directory.parent if directory.name == "adapter" else directory
    name = str(place.relative_to(root)) if place.is_relative_to(root) else str(place)
    name = root.name if name == "." else name
    try:
        modified = (directory / CONFIG_FILE).stat().st_mtime
        values = read_json_object(directory / CONFIG_FILE)
        tensors = read_tensor_header(directory / WEIGHTS_FILE)
        file = directory / SETTINGS_FILE
        settings = read_json_object(file) if file.is_file() else {}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return AdapterFacts(name, directory, problem=f"its files cannot be read: {escaped(reason)}")
    factors = [(key, one) for key, one in tensors.items() if ".lora_A." in f"{key}."]
    factors += [(key, one) for key, one in tensors.items() if ".lora_embedding_A" in key]
    base = values.get("base_model_name_or_path")
    quantization = settings.get("quantization")
    labels = settings.get("labels")
    return AdapterFacts(
        name,
        directory,
        modified,
        base if isinstance(base, str) and base else None,
        _text(settings.get("task_type")) or _text(values.get("task_type")),
        tuple(map(str, labels)) if isinstance(labels, list) else (),
        _text(settings.get("format")),
        settings.get("text_pair") is True,
        _text(settings.get("dtype")),
        quantization.get("bits", 4) if isinstance(quantization, dict) else None,
        tuple(sorted({one.shape[0] for _, one in factors if one.shape})),
        len(factors),
        sum(one.elements for one in tensors.values()),
        sum(one.bytes for one in tensors.values()),
        {key: value for key, value in values.items() if value not in (None, False, {}, [], "")},
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _adapter_directories(root: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(root):
        here = Path(folder)
        if CONFIG_FILE in files:
            yield here
            names.clear()
            continue
        depth = len(here.relative_to(root).parts)
        names[:] = [
            name
            for name in sorted(names)
            if depth < _DEEPEST and is_utf8(name) and not name.startswith((".", "checkpoint-"))
        ]


def read_tensor_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors that the header of a safetensors file names.

    Raises:
        ValueError: The header is damaged; the message is a phrase.
        OSError: The file cannot be read.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
        if length > min(_MOST_HEADER_BYTES, os.fstat(opened.fileno()).st_size):
            raise ValueError(f"{file.name} is not a safetensors file, or was cut")
        values = parse_json_object(opened.read(length))
    values.pop("__metadata__", None)
    try:
        return {
            name: StoredTensor(str(entry["dtype"]), tuple(map(int, entry["shape"])))
            for name, entry in values.items()
        }
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"the header of {file.name} is damaged") from None


# ---- the analysis ----


@dataclass(frozen=True)
class ModuleRow:
    """One module in layers.csv of an analysis."""

    module: str
    kind: str
    r: int
    norm: float
    effective_rank: float
    amplification: float | None


@dataclass(frozen=True)
class KindRow:
    """All modules of one kind together; norms and ranks are means."""

    kind: str
    count: int
    ranks: tuple[int, ...]
    norm: float
    largest_norm: float
    effective_rank: float


@dataclass(frozen=True)
class Analysis:
    """What `lorakit analyze` wrote about an adapter.

    Attributes:
        folder: Its directory.
        modules: All modules.
        pictures: The pictures, by name.
        is_outdated: Whether the adapter was written after it.
    """

    folder: Path
    modules: tuple[ModuleRow, ...]
    pictures: tuple[Path, ...]
    is_outdated: bool

    @cached_property
    def kinds(self) -> list[KindRow]:
        """The kinds of modules, in the adapter's order."""
        by_kind: dict[str, list[ModuleRow]] = {}
        for row in self.modules:
            by_kind.setdefault(row.kind, []).append(row)
        return [
            KindRow(
                kind,
                len(rows),
                tuple(sorted({row.r for row in rows})),
                mean(row.norm for row in rows),
                max(row.norm for row in rows),
                mean(row.effective_rank for row in rows),
            )
            for kind, rows in by_kind.items()
        ]

    def largest(self, most: int = 5) -> list[tuple[ModuleRow, float]]:
        """Return the modules with the largest updates, each with its share of Σ‖ΔW‖²."""
        whole = sum(row.norm**2 for row in self.modules) or 1.0
        ordered = sorted(self.modules, key=lambda row: -row.norm)[:most]
        return [(row, row.norm**2 / whole) for row in ordered]


def read_analysis(adapter: AdapterFacts) -> Analysis | None:
    """Return the analysis of an adapter, or None if there is none yet.

    Raises:
        AdapterFileError: Its files are damaged.
    """
    folder = adapter.analysis_folder
    file = folder / "layers.csv"
    try:
        written = file.stat().st_mtime
        with file.open(encoding="utf-8", newline="") as opened:
            rows = tuple(_module_row(row) for row in csv.DictReader(opened))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterFileError(
            f"Cannot read the analysis in {file}: got {type(error).__name__}, expected the table "
            f"that `lorakit analyze` writes. Remove {folder} and analyse again."
        ) from None
    return Analysis(folder, rows, tuple(sorted(folder.glob("*.png"))), written < adapter.modified_s)


def _module_row(row: Mapping[str, str]) -> ModuleRow:
    factor = row.get("amplification_factor")
    return ModuleRow(
        row["module"],
        row["kind"],
        int(row["r"]),
        float(row["norm"]),
        float(row["effective_rank"]),
        float(factor) if factor else None,
    )


def format_setting(value: Any) -> str:
    """Return a value of adapter_config.json as a text of one line.

    >>> format_setting(["q_proj", "v_proj"]), format_setting(16)
    ('q_proj, v_proj', '16')
    """
    if isinstance(value, list):
        return ", ".join(format_setting(each) for each in value)
    return escaped(value if isinstance(value, str) else json.dumps(value))

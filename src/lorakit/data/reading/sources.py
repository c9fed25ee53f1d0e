"""Read the examples that a recipe names: files, saved datasets and hub datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from lorakit.data.mixture import Mixture
from lorakit.data.reading.columns import take_columns
from lorakit.data.reading.files import no_examples, read_file, unreadable
from lorakit.data.reading.several import expand_glob, join_examples
from lorakit.data.reading.table import FileExamples
from lorakit.data.table_cache import TableCache
from lorakit.errors import DataError, LorakitError, MissingFileError, did_you_mean, first_few
from lorakit.libraries.hub import fetch_failure_reason, offline_if_unreachable
from lorakit.recipes.data_names import ENDINGS, is_glob, is_local, looks_like_a_path

if TYPE_CHECKING:
    from lorakit.recipes.data_section import DataConfig, SourceConfig


def read_source(
    name: str,
    subset: str | None,
    key: str,
    delimiter: str | None = None,
    cache: TableCache | None = None,
) -> FileExamples | DatasetDict:
    """Read the examples of a file, a saved dataset or a hub dataset.

    A file that was replaced is read as it is now, whatever its modification time: what is kept of
    large files is found by their content.

    Args:
        name: Path or hub id in the recipe.
        subset: Configuration of a hub dataset.
        key: The recipe key that names it.
        delimiter: Separator of the cells of a csv file; None detects it.
        cache: Where large files are kept as they were read; None keeps nothing.

    Raises:
        MissingFileError: It does not exist or cannot be reached.
        DataError: It cannot be read.
    """
    path = Path(name).expanduser()
    if is_glob(name):
        files = expand_glob(name, key)
        found = (read_source(file, subset, key, delimiter, cache) for file in files)
        parts = [
            pick_split(one, "train", file, key) for one, file in zip(found, files, strict=True)
        ]
        return join_examples(parts, files, "Files")
    try:
        if path.is_dir():
            source = _read_saved(path, key)
        elif path.is_file():
            return read_file(path, key, delimiter, cache)
        elif looks_like_a_path(name):
            raise MissingFileError(_missing(path, key))
        else:
            source = _read_hub(name, subset, key)
    except LorakitError:
        raise
    except OSError as error:  # no permission, a name that is too long, a disk that fails
        reason = error.strerror or type(error).__name__
        raise DataError(
            f"Could not read {key}: got '{_shorten(name)}', expected data that can be read "
            f"({reason}). Check the path and its permissions."
        ) from error
    return source if isinstance(source, DatasetDict) else FileExamples(source)


def require_hub_data(subset: str | None, names: Sequence[str], key: str) -> None:
    """Refuse a configuration where no dataset of the hub is named that could have it.

    Raises:
        DataError: All names are those of local data.
    """
    if subset is not None and all(is_glob(name) or is_local(name) for name in names):
        raise DataError(
            f"Only datasets of the hub have configurations: got {key}='{subset}' for "
            f"{first_few([repr(name) for name in names], 3)}, expected the id of one. Leave it out."
        )


def read_sources(
    sources: Sequence[SourceConfig], data: DataConfig, cache: TableCache
) -> tuple[FileExamples, Mixture]:
    """Read several sources of training examples, one after the other.

    Args:
        sources: The sources.
        data: The recipe's section, for the delimiter and the split.
        cache: Where large files are kept as they were read.

    Raises:
        MissingFileError, DataError: A source cannot be read, lacks a column that it names, or has
            other columns than the first.
    """
    parts: list[FileExamples] = []
    names: list[str] = []
    for number, source in enumerate(sources):
        key = f"data.train[{number}].path"
        require_hub_data(source.subset, source.names, f"data.train[{number}].subset")
        files: list[FileExamples] = []
        for name in source.names:
            found = read_source(name, source.subset, key, data.delimiter, cache)
            split, key_of_split = source.split or data.train_split, f"data.train[{number}].split"
            given = source.split is not None
            chosen = pick_split(found, split, name, key_of_split, is_given=given)
            if not len(chosen.dataset):
                raise DataError(no_examples(f"'{name}' ({key})"))
            files.append(chosen)
        joined = join_examples(files, source.names, "Files")
        name = first_few(source.names, 3)
        taken = take_columns(joined.dataset, source.columns, f"data.train[{number}]", name)
        parts.append(replace(joined, dataset=taken))
        names.append(name)
    source_of = np.repeat(np.arange(len(parts)), [len(part.dataset) for part in parts])
    weights = tuple(source.weight for source in sources)
    return join_examples(parts, names, "Sources"), Mixture(weights, source_of)


def _shorten(name: str, most: int = 200) -> str:
    return name if len(name) <= most else f"{name[:most]}..."


def pick_split(
    source: FileExamples | DatasetDict, split: str, name: str, key: str, *, is_given: bool = False
) -> FileExamples:
    """Return a split of a source, or the whole source if it has no splits.

    Args:
        source: What was read.
        split: Name of the split.
        name: Name of the source, for errors.
        key: The recipe key that names the split.
        is_given: Whether the recipe names it.

    Raises:
        DataError: The split does not exist; lists those that do.
    """
    if isinstance(source, FileExamples):
        if is_given:
            raise DataError(
                f"No such split in {key}: got '{split}', but '{name}' is one table without splits. "
                f"Leave {key} out, or name the file of that split."
            )
        return source
    if split not in source:
        raise DataError(
            f"No such split in {key}: got '{split}', expected one of '{name}': "
            f"{', '.join(map(str, source))}.{did_you_mean(split, map(str, source))} "
            f"Set {key} to one of them."
        )
    return FileExamples(source[split])


def _missing(path: Path, key: str) -> str:
    folder = path.parent
    if not folder.is_dir():
        return (
            f"No data in {key}: got '{path}', but there is no folder '{folder}'. "
            "Check the path; it is relative to the current directory."
        )
    names = sorted(entry.name for entry in folder.iterdir())
    near = get_close_matches(path.name, names, n=3, cutoff=0.4)
    there = near or [name for name in names if Path(name).suffix.lower() in ENDINGS][:5]
    hint = f" Near it in '{folder}': {', '.join(there)}." if there else ""
    return (
        f"No data in {key}: got '{path}', expected a file or folder that exists.{hint} "
        "Check the path; it is relative to the current directory."
    )


def _read_saved(path: Path, key: str) -> Dataset | DatasetDict:
    if not ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        files = sorted(e.name for e in path.iterdir() if e.suffix.lower() in ENDINGS)
        hint = f" Files in it that can be read: {', '.join(files[:5])}." if files else ""
        raise DataError(
            f"Could not read {key}: got the folder '{path}', expected one written by "
            f"Dataset.save_to_disk, or a file.{hint} Name one file in {key}."
        )
    if not any(path.rglob("*.arrow")):  # what the library writes for an empty dataset
        raise DataError(no_examples(f"'{path}' ({key})"))
    try:
        return load_from_disk(path)
    except Exception as error:  # pyarrow and datasets raise many types for a damaged folder
        raise DataError(unreadable(path, key, error)) from error


def _read_hub(name: str, subset: str | None, key: str) -> Dataset | DatasetDict:
    label = f"'{name}'" + (f" (data.subset '{subset}')" if subset else "")
    try:
        with offline_if_unreachable():
            return load_dataset(name, subset)
    except ValueError as error:
        raise DataError(
            f"Could not load {label} in {key} from the Hugging Face hub: "
            f"{str(error).strip().splitlines()[0].rstrip('.')}. Set data.subset to one of its "
            "configurations."
        ) from error
    except Exception as error:  # network, hub and cache errors have no common class
        raise MissingFileError(
            f"Could not load {key}: got {label}, which is not a file or folder, and asking the "
            f"Hugging Face hub for a dataset of that name failed ({fetch_failure_reason(error)}). "
            "Check the name and the network, or name a local csv, json, jsonl or parquet file or a "
            "saved dataset."
        ) from error

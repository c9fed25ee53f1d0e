"""Read one data file: csv, json, jsonl or parquet; large ones are kept as they were read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
from pyarrow.dataset import ParquetFileFormat
from pyarrow.fs import LocalFileSystem

from lorakit.data.progress import report_progress
from lorakit.data.reading.csv_files import csv_parts, read_csv
from lorakit.data.reading.json_columns import written_features
from lorakit.data.reading.json_files import json_parts, read_json
from lorakit.data.reading.table import (
    CHUNK_EXAMPLES,
    LARGE_FILE_BYTES,
    FileExamples,
    Keep,
    in_memory_dataset,
    keep_in_memory,
    require_names,
)
from lorakit.data.table_cache import Spool, TableCache, preparing_code
from lorakit.errors import DataError
from lorakit.files.content_digests import file_sha256
from lorakit.recipes.data_names import TEXT_TABLES, require_known_ending


def read_file(
    path: Path, key: str, delimiter: str | None = None, cache: TableCache | None = None
) -> FileExamples:
    """Read the examples of a file.

    Args:
        path: The file.
        key: The recipe key that names it.
        delimiter: Separator of the cells of a csv file; None detects it.
        cache: Where large files are kept as they were read, by their content; None keeps nothing.

    Raises:
        DataError: It cannot be read, or has no examples.
    """
    require_known_ending(path, key)
    size = path.stat().st_size
    if not size:
        raise DataError(no_examples(f"'{path}' ({key})"))
    if size < LARGE_FILE_BYTES or cache is None:
        return _parse(path, key, delimiter, keep_in_memory)
    facts = (str(path), file_sha256(path), delimiter, preparing_code(), version("pyarrow"))
    name = hashlib.sha256(repr(facts).encode()).hexdigest()
    kept = cache.get(name)
    if kept is None:
        found = _parse(path, key, delimiter, Spool().keep)
        tables = {"examples": found.dataset.data.table}
        if found.lines is not None:
            tables["lines"] = pa.table({"line": found.lines})
        kept = cache.put(name, tables, {"notes": found.notes})
    table, lines = kept.tables["examples"], kept.tables.get("lines")
    is_json = path.suffix.lower() in (".json", ".jsonl")
    return FileExamples(
        in_memory_dataset(table, written_features(table) if is_json else None),
        None if lines is None else lines["line"].to_numpy(),
        tuple(kept.facts["notes"]),
    )


def file_parts(
    path: Path, key: str, delimiter: str | None, examples_each: int
) -> Iterator[FileExamples]:
    """Yield the examples of a file in parts, as `read_file` reads them; the file is not kept.

    Nothing is read before it is needed.

    Raises:
        DataError: It cannot be read as far as it is needed, or is one JSON document.
    """
    require_known_ending(path, key)
    ending = path.suffix.lower()
    if not path.stat().st_size:
        raise DataError(no_examples(f"'{path}' ({key})"))
    if ending in TEXT_TABLES:
        yield from csv_parts(path, key, delimiter, examples_each)
    elif ending == ".parquet":
        for table in _parquet_tables(path, key, examples_each):
            if len(table):
                yield FileExamples(in_memory_dataset(table))
    else:
        yield from json_parts(path, key, examples_each)


def no_examples(where: str) -> str:
    """Return the message about data without examples."""
    return (
        f"No examples in {where}: got 0, expected at least 1. Check that the right file is named."
    )


def unreadable(path: Path, key: str, error: Exception) -> str:
    """Return the message about a damaged file or folder."""
    cause = error.__cause__ or error
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    return (
        f"Could not read {key}: got '{path}', which is damaged or not what its ending says "
        f"({reason.rstrip('.')}). Repair or rewrite the file."
    )


def _parse(path: Path, key: str, delimiter: str | None, keep: Keep) -> FileExamples:
    ending = path.suffix.lower()
    if ending in TEXT_TABLES:
        return read_csv(path, key, delimiter, keep)
    return _read_parquet(path, key, keep) if ending == ".parquet" else read_json(path, key, keep)


def _read_parquet(path: Path, key: str, keep: Keep) -> FileExamples:
    is_large = path.stat().st_size >= LARGE_FILE_BYTES
    tables: list[pa.Table] = []
    for table in _parquet_tables(path, key, CHUNK_EXAMPLES, reports=is_large):
        tables.append(keep(table))
    try:
        return FileExamples(in_memory_dataset(pa.concat_tables(tables)))
    except Exception as error:  # datasets raises many types for metadata that is damaged
        raise DataError(unreadable(path, key, error)) from error


def _parquet_tables(
    path: Path, key: str, examples_each: int, *, reports: bool = False
) -> Iterator[pa.Table]:
    """Yield an empty table with the columns of a file, then its examples."""
    try:
        file = ParquetFileFormat().make_fragment(str(path), LocalFileSystem())
        schema = file.physical_schema
        require_names(schema.names, f"{key}: got '{path}'")
        count, total = 0, file.count_rows()
        yield _plain(schema.empty_table()).replace_schema_metadata(schema.metadata)
        batches = file.to_batches(
            batch_size=examples_each, batch_readahead=1, fragment_readahead=1, use_threads=False
        )
        for batch in batches:
            table = pa.Table.from_batches([batch])
            table.validate(full=True)  # finds invalid UTF-8 now rather than during training
            yield _plain(table).replace_schema_metadata(schema.metadata)
            count += len(table)
            if reports:
                report_progress(f"Reading {path.name}", count, total)
    except DataError:
        raise
    except Exception as error:  # pyarrow raises many types for a damaged file
        raise DataError(unreadable(path, key, error)) from error


def _plain(table: pa.Table) -> pa.Table:
    """Return a table with dictionary-encoded columns (pandas' categories) as plain values."""
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    return pa.table(columns, names=table.column_names)

"""Read csv files: every cell is text, exactly as written."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lorakit.data.reading.file_text import open_text
from lorakit.data.reading.table import (
    CHUNK_EXAMPLES,
    FileExamples,
    Keep,
    in_memory_dataset,
    keep_in_memory,
    require_names,
)
from lorakit.errors import DataError, first_few

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_TABS = {".tsv": "\t"}
_SAMPLE_CHARACTERS = 1 << 16
_SAMPLE_RECORDS = 50
_LONGEST_CELL = 2**31 - 1
"""In characters; Python's default limit is 131,072, less than some documents have."""


def read_csv(
    path: Path, key: str, delimiter: str | None = None, keep: Keep = keep_in_memory
) -> FileExamples:
    """Read a csv file whose first record names the columns.

    Cells are text: `007` stays `007`, `true` stays `true`, and "NA" is text too. An empty cell is a
    missing value, with or without quotes.

    Args:
        path: The file.
        key: The recipe key that names it.
        delimiter: Separator of the cells; None takes tabs for .tsv and detects it otherwise.
        keep: Keeps each part of the table.

    Raises:
        DataError: Names the lines with more or fewer cells than the header, an unclosed quote,
            columns of the same name, or bytes that are not UTF-8.
    """
    with open_text(path, key) as stream, _long_cells():
        notes = []
        found = delimiter or _delimiter(path, stream)
        if delimiter is None and found not in (",", _TABS.get(path.suffix.lower())):
            notes.append(f"'{path}' is read as separated by {_DELIMITERS[found]} (data.delimiter).")
        tables, lines = [], []
        header, parts = _parts(stream, found, f"{key}: got '{path}'", CHUNK_EXAMPLES)
        for table, some in parts:
            tables.append(keep(table))
            lines.append(some)
        if any(name != name.strip() for name in header):
            notes.append(f"Spaces around the column names of '{path}' were removed.")
    return FileExamples(
        in_memory_dataset(pa.concat_tables(tables)), np.concatenate(lines), tuple(notes)
    )


def csv_parts(
    path: Path, key: str, delimiter: str | None, examples_each: int
) -> Iterator[FileExamples]:
    """Yield the examples of a csv file in parts, reading no more than is needed; see `read_csv`."""
    with open_text(path, key, reports=False) as stream, _long_cells():
        found = delimiter or _delimiter(path, stream)
        where = f"{key}: got '{path}'"
        for table, lines in _parts(stream, found, where, examples_each, reads_on=False)[1]:
            if len(table):
                yield FileExamples(in_memory_dataset(table), lines)


@contextmanager
def _long_cells() -> Iterator[None]:
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _delimiter(path: Path, stream: TextIO) -> str:
    """Return the delimiter: the first that gives every record as many cells as the header."""
    if path.suffix.lower() in _TABS:
        return _TABS[path.suffix.lower()]
    sample = stream.read(_SAMPLE_CHARACTERS)
    stream.seek(0)
    lines = sample.splitlines(keepends=True)
    if len(sample) == _SAMPLE_CHARACTERS and len(lines) > 1:
        lines.pop()  # it may be incomplete
    widths = {mark: _widths(lines, mark) for mark in _DELIMITERS}
    several = [mark for mark, found in widths.items() if found and found[0] > 1]
    even = [mark for mark in several if len(set(widths[mark])) == 1]
    return next(iter(even or several), ",")


def _widths(lines: Sequence[str], delimiter: str) -> list[int]:
    records = csv.reader(lines, delimiter=delimiter)
    try:
        return [len(record) for record in islice(filter(None, records), _SAMPLE_RECORDS)]
    except csv.Error:
        return []


def _parts(
    stream: TextIO, delimiter: str, where: str, examples_each: int, *, reads_on: bool = True
) -> tuple[list[str], Iterator[tuple[pa.Table, np.ndarray]]]:
    """Return the column names as written, and tables with the line of each example.

    The first table is empty. If records have more or fewer cells than the header, the file is read
    to its end to list them all, unless `reads_on` is false.
    """
    records = _records(stream, delimiter, where)
    first = next(records, None)
    if first is None:
        return [], iter([(pa.table({}), np.array([], dtype=np.int64))])
    written = first[1]
    header = _column_names(written, where)
    schema = pa.schema([(name, pa.string()) for name in header])

    def parts() -> Iterator[tuple[pa.Table, np.ndarray]]:
        yield schema.empty_table(), np.array([], dtype=np.int64)
        ragged: dict[int, list[int]] = {}
        while chunk := list(islice(records, examples_each)):
            for line, cells in chunk:
                if len(cells) != len(header):
                    ragged.setdefault(len(cells), []).append(line)
            if not ragged:
                columns = zip(*(cells for _, cells in chunk), strict=True)
                arrays = [pa.array([c or None for c in cells], pa.string()) for cells in columns]
                lines = np.array([line for line, _ in chunk], dtype=np.int64)
                _require_no_nul(arrays, lines, where)
                yield pa.table(arrays, schema), lines
            elif not reads_on:
                break
        if ragged:
            raise DataError(_ragged_message(ragged, len(header), delimiter, where))

    return written, parts()


def _records(stream: TextIO, delimiter: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record that is not blank, with its first line."""
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(_malformed_message(error, line, reader.line_num, where)) from error
        if len(record) > 1 or (record and record[0].strip()):
            yield line, record


def _malformed_message(error: csv.Error, line: int, last: int, where: str) -> str:
    if "unexpected end of data" in str(error):
        problem = f"in which a quote opened in the record of line {line} is never closed"
    elif "expected after" in str(error):
        problem = f"in whose line {last} text follows the quote that closes a cell"
    else:
        problem = f"whose line {last} cannot be read ({error})"
    return (
        f"Could not read {where}, {problem}, expected csv. Write a quote inside a quoted cell "
        'twice ("").'
    )


def _require_no_nul(columns: Sequence[pa.Array], lines: np.ndarray, where: str) -> None:
    """Refuse NUL characters, which a power cut leaves where a file was being written."""
    for column in columns:
        has_one = pc.call_function("match_substring", [column], pc.MatchSubstringOptions("\0"))
        at = pc.index(has_one, True).as_py()
        if at >= 0:
            raise DataError(
                f"Could not read {where}, whose record of line {lines[at]} has a NUL character, "
                "expected text. The file is damaged, or not in UTF-8: repair or write it again."
            )


def _column_names(written: Sequence[str], where: str) -> list[str]:
    """Return the names of the columns; an unnamed one, such as an index, gets its number."""
    names = [name.strip() or f"Unnamed: {index}" for index, name in enumerate(written)]
    require_names(names, where)
    return names


def _ragged_message(ragged: dict[int, list[int]], width: int, delimiter: str, where: str) -> str:
    problems = [
        f"{'line' if len(lines) == 1 else 'lines'} {first_few(map(str, lines), 5)} "
        f"{'has' if len(lines) == 1 else 'have'} {cells} cell{'' if cells == 1 else 's'}"
        for cells, lines in sorted(ragged.items())
    ]
    mark = {",": "comma", ";": "semicolon", "\t": "tab"}.get(delimiter, f"'{delimiter}'")
    return (
        f"Could not read {where}, whose {first_few(problems)}, expected {width} as "
        f"the header has. Put quotes around a cell with a {mark} or a line break in it, or say "
        "what separates cells in data.delimiter."
    )

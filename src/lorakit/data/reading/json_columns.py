"""Build columns from JSON objects: of a plain type if possible, else the values as written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets import Features, Json

from lorakit.data.reading.table import (
    CHUNK_EXAMPLES,
    FileExamples,
    Keep,
    in_memory_dataset,
    keep_in_memory,
    require_names,
)
from lorakit.errors import DataError, escaped

_PLAIN = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
_WRITTEN = pa.json_()
_UNKNOWN = {pa.null(): pa.string(), pa.list_(pa.null()): pa.list_(pa.string())}


@dataclass
class WrittenJson(Json):
    """The datasets library's Json, parsed by Python.

    A column of mappings gives every mapping all keys, filled with nulls; here each keeps only its
    keys. The library's parser changes the last digit of two numbers in five (0.3 becomes
    0.30000000000000004), and reads a string such as "1" as a number.
    """

    pa_type: ClassVar[Any] = pa.json_()
    # The stored name of the type: other readers of a saved dataset only know the library's.
    _type: str = field(default="Json", init=False, repr=False)

    def encode_example(self, example_data: Any) -> str | None:
        """Return a value as JSON."""
        return None if example_data is None else json.dumps(example_data, ensure_ascii=False)

    def decode_example(self, example_data: str | None, token_per_repo_id: Any = None) -> Any:
        """Return the value of a JSON string."""
        return None if example_data is None else json.loads(example_data)


def columns_from_objects(
    records: Iterable[tuple[int | None, dict[str, Any]]],
    where: str,
    note: str | None,
    keep: Keep = keep_in_memory,
) -> FileExamples:
    """Return objects as a table.

    A column whose values are all strings, integers, floats, booleans, or lists of one of these has
    that type. Any other column keeps each value as written. A key that an object does not have is a
    missing value.

    Args:
        records: The line of each object, if known, and the object.
        where: The recipe key and the file, for errors.
        note: How the file was read.
        keep: Keeps each part of the table.

    Raises:
        DataError: A text has half a surrogate pair, which no tokenizer accepts.
    """
    iterator = iter(records)
    columns: dict[str, list[pa.Array]] = {}
    count = 0
    lines: list[np.ndarray] | None = []
    while chunk := list(islice(iterator, CHUNK_EXAMPLES)):
        objects = [value for _, value in chunk]
        found = dict.fromkeys(name for value in objects for name in value)
        added = [name for name in found if name not in columns]
        require_names(added, where)
        columns |= {name: [pa.nulls(count)] for name in added}
        arrays = {
            name: _array([value.get(name) for value in objects], name, where) for name in columns
        }
        table = keep(pa.table(arrays))
        for name, chunks in columns.items():
            chunks += table[name].chunks
        count += len(chunk)
        given = [line for line, _ in chunk]
        if lines is not None:
            lines = None if None in given else [*lines, np.array(given, dtype=np.int64)]
    table = pa.table({name: _join_chunks(chunks) for name, chunks in columns.items()})
    numbers = None if lines is None else np.concatenate([np.array([], dtype=np.int64), *lines])
    return FileExamples(
        in_memory_dataset(table, written_features(table)),
        numbers,
        () if note is None else (note,),
    )


def written_features(table: pa.Table) -> dict[str, Any]:
    """Return the types of the columns of a table that was built from JSON objects."""
    features: dict[str, Any] = dict(Features.from_arrow_schema(table.schema))
    written = [name for name in table.column_names if table.schema.field(name).type == _WRITTEN]
    return features | {name: WrittenJson() for name in written}


def _array(values: list[Any], name: str, where: str) -> pa.Array:
    try:
        kind = _type_of(values)
        return json_array(values) if kind == _WRITTEN else pa.array(values, kind)
    except UnicodeEncodeError:
        raise DataError(
            f"Could not read {where}, whose column '{escaped(name)}' holds half a surrogate pair "
            "(\\ud800 to \\udfff), expected whole characters. Repair or remove the text."
        ) from None


def _type_of(values: list[Any]) -> pa.DataType:
    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return pa.null()
    if kinds == {list}:
        items = [item for value in values if value is not None for item in value]
        inner = _type_of(items)
        is_plain = inner in _PLAIN.values() or not items
        return pa.list_(inner) if is_plain else _WRITTEN
    plain = _PLAIN.get(next(iter(kinds))) if len(kinds) == 1 else None
    if plain == pa.int64() and any(v is not None and abs(v) >= 2**63 for v in values):
        return _WRITTEN
    return _WRITTEN if plain is None else plain


def _join_chunks(chunks: list[pa.Array]) -> pa.ChunkedArray:
    """Return the chunks as one column, of a type that fits all of them."""
    kind = pa.null()
    for chunk in chunks:
        kind = _common(kind, chunk.type)
    if kind == _WRITTEN:
        return pa.chunked_array([_as_written(chunk) for chunk in chunks], kind)
    if kind in _UNKNOWN:  # only missing values, or empty lists of an unknown type
        kind = _UNKNOWN[kind]
    return pa.chunked_array([chunk.cast(kind) for chunk in chunks], kind)


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if pa.types.is_list(one) and pa.types.is_list(other):
        inner = _common(one.value_type, other.value_type)
        return _WRITTEN if inner == _WRITTEN else pa.list_(inner)
    return _WRITTEN


def _as_written(chunk: pa.Array) -> pa.Array:
    return chunk if chunk.type == _WRITTEN else json_array(chunk.to_pylist())


def json_array(values: list[Any]) -> pa.Array:
    """Return values of any shape as a column for `WrittenJson`."""
    texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
    return pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts, pa.string()))

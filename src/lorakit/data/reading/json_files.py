"""Read json and jsonl files: every value as written, nulls included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from lorakit.data.reading.file_text import open_text
from lorakit.data.reading.json_columns import columns_from_objects
from lorakit.data.reading.table import FileExamples, Keep, keep_in_memory
from lorakit.errors import DataError, escaped, first_few

_KINDS = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
_SHOWN = 'expected one JSON object for each example, such as {"text": "..."}'
_CHAT_KEYS = ("role", "from")


def read_json(path: Path, key: str, keep: Keep = keep_in_memory) -> FileExamples:
    """Read examples from JSON: one object per line, a list of objects, or columns of lists.

    A document `{"data": [...]}` with one list of objects is read as that list.

    Args:
        path: The file.
        key: The recipe key that names it.
        keep: Keeps each part of the table.

    Raises:
        DataError: Names the line that is not JSON or not an object.
    """
    where = f"{key}: got '{path}'"
    with open_text(path, key) as stream:
        try:
            if _is_one_document(stream):
                document = _parse(stream.read(), where, None)
                is_lines = path.suffix.lower() == ".jsonl"  # an object there is one example
                records, note = _examples_of(document, where, may_be_columns=not is_lines)
                numbered = ((None, record) for record in records)
                return columns_from_objects(numbered, where, note, keep)
            return columns_from_objects(_lines(stream, where), where, None, keep)
        except RecursionError:
            raise DataError(
                f"Could not read {where}, which is nested too deeply, expected lists and objects a "
                "few levels deep. Flatten the values, or store them as text."
            ) from None


def json_parts(path: Path, key: str, examples_each: int) -> Iterator[FileExamples]:
    """Yield the examples of a file with one JSON object per line in parts; see `read_json`.

    Nothing is read before it is needed.

    Raises:
        DataError: The file is one JSON document, or a line is not an object.
    """
    where = f"{key}: got '{path}'"
    with open_text(path, key, reports=False) as stream:
        if _is_one_document(stream) and path.suffix.lower() != ".jsonl":
            raise DataError(
                f"Could not read {where}, which is one JSON document, expected one object per line "
                "for data.streaming=true. Write each example on its line, or leave streaming out."
            )
        records = _lines(stream, where)
        while part := list(islice(records, examples_each)):
            yield columns_from_objects(part, where, None)


def _is_one_document(stream: TextIO) -> bool:
    """Return whether a file is one JSON value rather than one per line; rewinds the stream."""
    first = next((line for line in stream if line.strip()), "")
    has_more = any(line.strip() for line in stream)
    stream.seek(0)
    if not first.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(first)
    except ValueError as error:
        # An incomplete line is the beginning of a document over several lines.
        return has_more and getattr(error, "pos", 0) >= len(first.rstrip())
    return not has_more


def _lines(stream: TextIO, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(stream, start=1):
        if line.strip():
            value = _parse(line, where, number)
            if not isinstance(value, dict):
                raise DataError(
                    f"Could not read {where}, whose line {number} is {_kind(value)}, {_SHOWN}. "
                    "Repair or remove the line."
                )
            yield number, value


def _parse(text: str, where: str, line: int | None) -> Any:
    text = text.rstrip()  # what is missing at the end of a line is reported there
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        at = f"line {line or error.lineno}, column {error.colno}"
        near = escaped(text[error.pos :].strip()[:20])
        reason = error.msg[:1].lower() + error.msg[1:]
        raise DataError(
            f"Could not read {where}, which is not JSON at {at} ({reason}"
            f"{f', before `{near}`' if near else ''}), {_SHOWN}. Repair or remove it."
        ) from None
    except ValueError as error:  # a repeated key, an integer of thousands of digits
        at = f" in line {line}" if line else ""
        reason = str(error).partition(";")[0]
        raise DataError(
            f"Could not read {where}, which has an invalid value{at} ({reason}), {_SHOWN}. "
            "Repair or remove it."
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{escaped(twice)}' appears twice in one object")
    return made


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _examples_of(
    document: Any, where: str, *, may_be_columns: bool
) -> tuple[list[dict[str, Any]], str | None]:
    """Return the examples of one JSON value, and a note on how it was read."""
    if isinstance(document, list):
        for number, value in enumerate(document, start=1):
            if not isinstance(value, dict):
                raise DataError(
                    f"Could not read {where}, whose item {number} is {_kind(value)}, {_SHOWN}. "
                    "Repair or remove it."
                )
        return document, None
    lists = {key: value for key, value in document.items() if isinstance(value, list)}
    tables = {key: value for key, value in lists.items() if _is_list_of_examples(value)}
    if len(tables) == 1 and len(lists) == 1:
        name, examples = next(iter(tables.items()))
        return examples, f"The examples are those under '{escaped(name)}' of the file."
    if len(tables) > 1 and len(tables) == len(lists):
        raise DataError(
            f"Could not read {where}, which has several lists of examples "
            f"({first_few(map(escaped, tables))}), expected one. Write each to a file, and name "
            "them in data.train and data.validation."
        )
    return _transpose(document, where) if may_be_columns else ([document], None)


def _transpose(document: dict[str, Any], where: str) -> tuple[list[dict[str, Any]], str | None]:
    """Return the examples of columns: lists, or mappings by index as pandas writes them."""
    columns = document
    if document and all(isinstance(value, dict) for value in document.values()):
        indices = list(next(iter(document.values())))
        if all(list(value) == indices for value in document.values()):
            columns = {name: list(value.values()) for name, value in document.items()}
    if not columns or not all(map(_is_column, columns.values())):
        return [document], None
    sizes = {name: len(value) for name, value in columns.items()}
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{size} in '{escaped(name)}'" for name, size in list(sizes.items())[:5])
        raise DataError(
            f"Could not read {where}, whose columns have different lengths ({said}), {_SHOWN}. "
            "Repair the file."
        )
    examples = zip(*columns.values(), strict=True)
    note = f"The file is read as columns: {first_few(map(escaped, columns), 10)}."
    return [dict(zip(columns, example, strict=True)) for example in examples], note


def _is_list_of_examples(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(item, dict) for item in value) and _is_column(value)


def _is_column(value: Any) -> bool:
    """Return whether a value is a list with an item per example, not the messages of one."""
    return isinstance(value, list) and not any(
        isinstance(item, dict) and any(key in item for key in _CHAT_KEYS) for item in value
    )


def _kind(value: Any) -> str:
    return _KINDS.get(type(value)) or ("null" if value is None else "a number")

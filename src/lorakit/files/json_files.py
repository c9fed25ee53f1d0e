"""JSON that others wrote: read within bounds, and refused in words."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_BYTES = 2**24
"""Bytes a file of settings may have; a rank for each expert of a large model takes millions."""

_POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_BYTES = len(_POINTER)
"""As many bytes of a file say whether Git LFS keeps it elsewhere."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SHOWN = 120


def read_json_object(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Return what a JSON file holds.

    Raises:
        ValueError: It is not a JSON object of at most `most_bytes`, or cannot be read; the message
            is a phrase that says why.
    """
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as error:
        raise ValueError(error.strerror or type(error).__name__) from None
    if len(data) > most_bytes:
        size = os.path.getsize(path)
        raise ValueError(f"it has {size:,} bytes, more than the {most_bytes:,} that are read")
    return parse_json_object(data)


def parse_json_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in some bytes.

    Raises:
        ValueError: It is something else, a key stands in it twice, or a text in it has control
            characters; the message is a phrase that says why.
    """
    require_no_pointer(data)
    try:
        values = json.loads(data.decode("utf-8"), object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(str(error)) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except ValueError as error:
        if "integer string conversion" not in str(error):
            raise
        raise ValueError("a number in it has thousands of digits") from None
    if not isinstance(values, dict):
        raise ValueError(f"got a {type(values).__name__}")
    _require_plain_texts(values, ())
    return values


def require_no_pointer(data: bytes) -> None:
    """Refuse the first bytes of a file that Git LFS keeps elsewhere.

    Raises:
        ValueError: It is a pointer; says how to get the file.
    """
    if data.startswith(_POINTER):
        raise ValueError(
            "it is a git-lfs pointer and not the file itself (run `git lfs pull` in its repository)"
        )


def is_pointer(path: Path) -> bool:
    """Return whether a file only says where Git LFS keeps the real one."""
    with path.open("rb") as file:
        return file.read(POINTER_BYTES) == _POINTER


def shortened(text: str) -> str:
    r"""Return the representation of a text from a file, without control characters and short.

    >>> shortened("a" * 200) == repr("a" * 120 + "…"), shortened("a\n")
    (True, "'a\\n'")
    """
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def has_control_characters(text: str) -> bool:
    """Return whether a text has characters that act on a terminal, or that no file can hold."""
    return _CONTROL.search(text) is not None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {shortened(twice)} stands in it twice")
    return values


def _require_plain_texts(value: Any, keys: Sequence[str]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _require_plain_texts(key, keys)
            _require_plain_texts(inner, (*keys, key))
    elif isinstance(value, list):
        for inner in value:
            _require_plain_texts(inner, keys)
    elif isinstance(value, str) and has_control_characters(value):
        place = f" at {shortened('.'.join(keys))}" if keys else ""
        raise ValueError(f"the text {shortened(value)}{place} has control characters")

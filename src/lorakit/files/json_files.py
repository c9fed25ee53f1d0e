"""Bounded reading of JSON files of unknown origin, with clear errors."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MOST_BYTES = 2**24
"""Maximum size of a settings file; one rank per expert of a large model takes millions."""

_POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_BYTES = len(_POINTER)
"""Number of leading bytes that identify a Git LFS pointer."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_ESCAPE = re.compile(r"\\[bfnrtu]")
"""How JSON writes characters that may be control characters or surrogates."""
_SHOWN = 120


def read_json_object(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        ValueError: The file is unreadable, larger than `most_bytes` or not a JSON object; the
            message is a phrase that gives the reason.
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
    """Parse a JSON object.

    Raises:
        ValueError: It is not a JSON object, repeats a key, or contains control characters; the
            message is a phrase that gives the reason.
    """
    require_no_pointer(data)
    try:
        text = data.decode("utf-8")
        values = json.loads(text, object_pairs_hook=_dict_of_distinct_keys)
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
    # Without these, valid JSON has no control character in a text; looking at each takes time.
    if _ESCAPE.search(text) or not text.isascii() or "\x7f" in text:
        _require_plain_texts(values, ())
    return values


def require_no_pointer(data: bytes) -> None:
    """Reject a Git LFS pointer.

    Args:
        data: The first bytes of the file.

    Raises:
        ValueError: The file is a pointer; the message says how to get the real one.
    """
    if data.startswith(_POINTER):
        raise ValueError(
            "it is a git-lfs pointer and not the file itself (run `git lfs pull` in its repository)"
        )


def is_pointer(path: Path) -> bool:
    """Return whether a file is a Git LFS pointer."""
    with path.open("rb") as file:
        return file.read(POINTER_BYTES) == _POINTER


def short_repr(text: str) -> str:
    r"""Return a shortened repr of a text from a file; repr escapes control characters.

    >>> short_repr("a" * 200) == repr("a" * 120 + "…"), short_repr("a\n")
    (True, "'a\\n'")
    """
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")


def has_control_characters(text: str) -> bool:
    """Return whether a text has control characters or surrogates."""
    return _CONTROL.search(text) is not None


def _dict_of_distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {short_repr(twice)} is repeated")
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
        place = f" at {short_repr('.'.join(keys))}" if keys else ""
        raise ValueError(f"the text {short_repr(value)}{place} has control characters")

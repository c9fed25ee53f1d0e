"""Tags and a note, which a person writes about a run; they are kept in its directory."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from lorakit.errors import ConfigError
from lorakit.files.atomic import write_text
from lorakit.files.json_files import read_json_object

NOTES_FILE = "notes.json"
MOST_TAGS = 20
LONGEST_TAG = 40
LONGEST_NOTE = 10_000

_writing = threading.Lock()


@dataclass(frozen=True)
class Notes:
    """What a person wrote about a run.

    Attributes:
        tags: Short words, in the order they were given.
        note: A text; may be empty.
    """

    tags: tuple[str, ...] = ()
    note: str = ""


def read_notes(directory: Path) -> Notes:
    """Read the notes of a run; those of a run without any are empty.

    Raises:
        ConfigError: The file is damaged.
    """
    path = directory / NOTES_FILE
    if not path.exists():
        return Notes()
    try:
        values = read_json_object(path)
    except ValueError as error:
        raise ConfigError(f"Cannot read {path}: {error}. Delete it, or restore it.") from None
    tags, lines = values.get("tags", []), values.get("note", [])
    if not isinstance(lines, list) or not isinstance(tags, list):
        raise ConfigError(
            f'Cannot read {path}: got other values, expected "tags" and "note". Delete it.'
        )
    return Notes(tuple(map(str, tags)), "\n".join(map(str, lines)))


def write_tags(directory: Path, tags: Iterable[str]) -> Notes:
    """Replace the tags of a run; the note stays.

    Raises:
        ConfigError: A tag is too long or has control characters, or there are too many.
        DiskError: The disk is not writable.
    """
    chosen = tuple(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))
    for tag in chosen:
        if len(tag) > LONGEST_TAG or not tag.isprintable():
            raise ConfigError(
                f"A tag cannot be saved: got {tag[:60]!r}, expected at most {LONGEST_TAG} "
                "printable characters. Shorten it; a note may be longer."
            )
    if len(chosen) > MOST_TAGS:
        raise ConfigError(
            f"The tags cannot be saved: got {len(chosen)}, expected at most {MOST_TAGS}. Remove "
            "some, or write a note."
        )
    return _write(directory, tags=chosen)


def write_note(directory: Path, text: str) -> Notes:
    """Replace the note of a run; the tags stay.

    Raises:
        ConfigError: It is too long.
        DiskError: The disk is not writable.
    """
    text = text.replace("\r\n", "\n").replace("\t", " ").strip()
    text = "".join(letter for letter in text if letter == "\n" or letter.isprintable())
    if len(text) > LONGEST_NOTE:
        raise ConfigError(
            f"The note cannot be saved: got {len(text):,} characters, expected at most "
            f"{LONGEST_NOTE:,}. Shorten it."
        )
    return _write(directory, note=text)


def _write(directory: Path, **changes: str | tuple[str, ...]) -> Notes:
    with _writing:
        notes = replace(read_notes(directory), **changes)
        facts = {"tags": list(notes.tags), "note": notes.note.split("\n")}
        write_text(directory / NOTES_FILE, json.dumps(facts, ensure_ascii=False) + "\n")
    return notes

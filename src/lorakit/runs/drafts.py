"""Runs that are being written: one file each, so that a closed browser loses nothing."""

from __future__ import annotations

import json
import re
import secrets
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from lorakit.errors import MissingFileError
from lorakit.files.atomic import write_text
from lorakit.files.disks import reporting_disk_errors

Step = Literal["base", "data", "method", "plan", "start"]
STEPS: tuple[Step, ...] = get_args(Step)

_FOLDER = Path(".lorakit") / "drafts"
_ID = re.compile(r"[0-9a-f]{12}")
_MOST_LISTED = 5


@dataclass(frozen=True)
class Draft:
    """A run that is being written."""

    id: str
    step: Step = "base"
    text: str = ""
    """The recipe as far as it is written."""
    continues: str = ""
    """The run to continue, relative to the folder; empty for a new run."""
    saved_s: float = 0.0
    """When it was saved, in seconds since 1970."""


def new_draft(text: str = "", continues: str = "", step: Step = "base") -> Draft:
    """Return a draft with a new id, which is not saved yet."""
    return Draft(secrets.token_hex(6), step, text, continues)


def save_draft(root: Path, draft: Draft) -> Draft:
    """Write a draft to its file and return it with the time.

    Raises:
        DiskError: The folder is not writable.
    """
    saved = replace(draft, saved_s=time.time())
    path = _path(root, draft.id)
    with reporting_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(asdict(saved)) + "\n")
    return saved


def load_draft(root: Path, id: str) -> Draft:
    """Read a draft.

    Raises:
        MissingFileError: There is none, or its file is damaged.
    """
    try:
        if not _ID.fullmatch(id):
            raise ValueError
        values: dict[str, Any] = json.loads(_path(root, id).read_text(encoding="utf-8"))
        known = {f.name: values[f.name] for f in fields(Draft)}
        draft = Draft(**{**known, "id": id})
    except (OSError, ValueError, TypeError, LookupError):
        draft = None
    if draft is None or draft.step not in STEPS or not isinstance(draft.text, str):
        raise MissingFileError(
            f"No draft {id[:20]!r} in {root / _FOLDER}: it was started or deleted, or its file is "
            "damaged. Begin a new run."
        )
    return draft


def newer_draft(root: Path, draft: Draft) -> Draft | None:
    """Return what somebody else has saved of a draft since it was read or saved here, or None."""
    try:
        found = load_draft(root, draft.id)
    except MissingFileError:
        return None
    return found if found.saved_s != draft.saved_s else None


def delete_draft(root: Path, id: str) -> None:
    """Delete a draft, if it exists."""
    if _ID.fullmatch(id):
        _path(root, id).unlink(missing_ok=True)


def recent_drafts(root: Path) -> list[Draft]:
    """Return the drafts that say anything, newest first."""
    found = []
    for path in (root / _FOLDER).glob("*.json"):
        try:
            found.append(load_draft(root, path.stem))
        except MissingFileError:
            continue
    written = [draft for draft in found if draft.text.strip()]
    return sorted(written, key=lambda draft: draft.saved_s, reverse=True)[:_MOST_LISTED]


def _path(root: Path, id: str) -> Path:
    return root / _FOLDER / f"{id}.json"

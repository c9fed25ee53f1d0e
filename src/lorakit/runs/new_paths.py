"""Names of new files and directories below a folder of runs."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from lorakit.errors import ConfigError, OutputExistsError, escaped
from lorakit.files.json_files import has_control_characters
from lorakit.runs.paths import resolve

_MOST_CHARACTERS = 200


def new_path(root: Path, relative: str) -> Path:
    """Return the path of something that is to be written below `root`.

    Args:
        root: Folder of runs.
        relative: Path below it, with slashes, as it comes from a form.

    Raises:
        ConfigError: It is empty, hidden, absolute, or leads out of `root`, also by a symbolic link.
        OutputExistsError: Something is there.
    """
    shown = escaped(relative)[:_MOST_CHARACTERS]
    name = relative.strip()
    path = PurePosixPath(name)
    is_plain = path.parts and not path.is_absolute() and len(name) <= _MOST_CHARACTERS
    hidden = [part for part in path.parts if part.startswith(".")]
    if not is_plain or hidden or has_control_characters(name) or "\\" in name:
        raise ConfigError(
            f"Cannot write to {shown!r} in {root}: expected a path below that folder such as "
            "merged/german, without '..', hidden parts or control characters. Choose another name."
        )
    parent = path.parent
    while not (root / parent).exists() and parent != parent.parent:
        parent = parent.parent
    top = resolve(root, parent.as_posix())
    if not top.is_dir():
        raise ConfigError(
            f"Cannot write to {shown!r} in {root}: {escaped(parent.as_posix())} is a file, "
            "expected a directory. Choose another name."
        )
    found = top / path.relative_to(parent)
    if found.exists() or found.is_symlink():
        raise OutputExistsError(
            f"Cannot write to {shown!r} in {root}: it exists already, expected a new name. Choose "
            "another one."
        )
    return found

"""Paths below a folder: one that somebody names who may see nothing else, new ones, and all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from lorakit.errors import ConfigError, MissingFileError, OutputExistsError, escaped
from lorakit.files.json_files import has_control_characters

STATE_FOLDER = ".lorakit"
"""Hidden directory of the folder for what belongs to no single run: queue, trash, keys."""

_DEEPEST = 6
_MOST_FOLDERS = 5000
_MOST_CHARACTERS = 200
_NOT_ENTERED = {"node_modules", "site-packages", "__pycache__", "tensorboard"}


def resolve(root: Path, relative: str) -> Path:
    """Return the path of something below `root`, after following symbolic links.

    Args:
        root: Folder of runs.
        relative: Path below it, with slashes, as it comes from an address or a form.

    Raises:
        ConfigError: The path leads out of `root`, directly or by a symbolic link.
        MissingFileError: Nothing is there.
    """
    shown = escaped(relative)
    top = root.resolve()
    try:
        found = (top / relative).resolve()
        is_there = found.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a circle of links
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"Cannot open '{shown[:200]}' in {root}: {reason}, expected a path below that folder. "
            "Choose one from the list of runs."
        ) from None
    if not found.is_relative_to(top):
        raise ConfigError(
            f"Cannot open '{shown}' in {root}: it leads out of that folder, expected a path below "
            "it. Move the files there, or start the studio with the folder above."
        )
    if not is_there:
        raise MissingFileError(
            f"Nothing at '{shown}' in {root}: there is no such file or directory. Choose one from "
            "the list of runs; it may have been moved or deleted."
        )
    return found


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


def read_end(path: Path, most_bytes: int) -> tuple[bytes, bool]:
    """Return the last bytes of a file, and whether they are all that it has."""
    with path.open("rb") as file:
        begin = max(0, file.seek(0, 2) - most_bytes)
        file.seek(begin)
        return file.read(most_bytes), begin == 0


def join_paths(paths: Iterable[str]) -> str:
    r"""Return several paths as one text for an address; `split_paths` takes it apart.

    >>> join_paths(["a", "b,c", "d\\e"])
    'a,b\\,c,d\\\\e'
    """
    return ",".join(re.sub(r"([\\,])", r"\\\1", path) for path in paths)


def split_paths(text: str) -> list[str]:
    r"""Return the paths that an address names, separated by commas, each once.

    A comma or a backslash in a path has a backslash before it.

    >>> split_paths("a,b\\,c,d\\\\e,,a")
    ['a', 'b,c', 'd\\e']
    """
    found = re.findall(r"(?:\\.|[^\\,])+", text, flags=re.DOTALL)
    return list(dict.fromkeys(re.sub(r"\\(.)", r"\1", one, flags=re.DOTALL) for one in found))


def is_utf8(name: str) -> bool:
    """Return whether a name is text, which addresses, recipes and pages can hold.

    A system may have other names, which Python reads with surrogates.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def visible_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield a folder and those below it, each with the sorted names of its files.

    Hidden folders, links and checkpoints are not entered. A folder that cannot be read is left out,
    and so is what has a name that is not UTF-8.
    """
    for place, folders, files in islice(os.walk(root), _MOST_FOLDERS):
        here = Path(place)
        is_deep = len(here.relative_to(root).parts) >= _DEEPEST
        folders[:] = [] if is_deep else sorted(name for name in folders if _is_entered(here, name))
        yield here, sorted(filter(is_utf8, files))


def _is_entered(parent: Path, name: str) -> bool:
    is_left_out = name.startswith((".", "checkpoint-")) or name in _NOT_ENTERED
    return is_utf8(name) and not is_left_out and not (parent / name).is_symlink()

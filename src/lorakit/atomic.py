"""Files and directories that appear whole or not at all."""

import atexit
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lorakit.disks import telling_of_disk

_unfinished: set[Path] = set()
"""What a process that ends at once has to remove first."""


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; move it into place when the block ends.

    Nothing is left behind, and an earlier file stays as it was, if the block raises.

    Args:
        path: The file to make; its directory must exist.

    Raises:
        DiskError: The disk is full, or may not be written to.
    """
    with telling_of_disk(path), _removed_at_the_end(_beside(path)) as temporary:
        temporary.touch(mode=0o600, exist_ok=False)
        yield temporary
        _flush(temporary)
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file with plain newlines, whole or not at all."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def appearing_directory(path: Path) -> Iterator[Path]:
    """Give a temporary directory beside `path` to fill; rename it to `path` when the block ends.

    All files in it get the permissions of ordinary files, whoever wrote them.

    Args:
        path: The directory to make; it must not exist or be empty.

    Raises:
        DiskError: The disk is full, or may not be written to.
    """
    with telling_of_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _removed_at_the_end(_beside(path)) as temporary:
            temporary.mkdir(mode=0o700)
            yield temporary
            for entry in temporary.rglob("*"):
                if entry.is_file():
                    _flush(entry)
                entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_umask())
            temporary.chmod(0o777 & ~_umask())
            os.replace(temporary, path)


@contextmanager
def scratch_directory(prefix: str) -> Iterator[Path]:
    """Give a temporary directory that is gone when the block, or the process, ends.

    Args:
        prefix: Of its name, in the system's directory for temporary files.

    Raises:
        DiskError: The disk is full, or may not be written to.
    """
    temporary = Path(tempfile.gettempdir())
    with (
        telling_of_disk(temporary),
        _removed_at_the_end(Path(tempfile.mkdtemp(prefix=prefix))) as made,
    ):
        yield made


def lasting_scratch_directory(prefix: str) -> Path:
    """Make a temporary directory that is gone when the process ends."""
    with telling_of_disk(Path(tempfile.gettempdir())):
        directory = Path(tempfile.mkdtemp(prefix=prefix))
    _unfinished.add(directory)
    atexit.register(_remove, directory)
    return directory


def remove_unfinished() -> None:
    """Remove what is not in its place yet, in a process that is about to end at once."""
    for path in tuple(_unfinished):
        _remove(path)


def leftovers(directory: Path, names: Iterable[str]) -> list[Path]:
    """Return what killed processes have left in a directory of the files of some names.

    Args:
        directory: Where files or directories with these names appear.
        names: Their names.
    """
    known = "|".join(map(re.escape, names))
    left = re.compile(rf"\.(?:{known})\.[a-z0-9_]{{8}}")
    return sorted(path for path in directory.glob(".*") if left.fullmatch(path.name))


def _beside(path: Path) -> Path:
    """Return a name for what is to become `path`; `leftovers` knows it again."""
    return path.parent / f".{path.name}.{secrets.token_hex(4)}"


@contextmanager
def _removed_at_the_end(temporary: Path) -> Iterator[Path]:
    _unfinished.add(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    _unfinished.discard(path)


def _flush(path: Path) -> None:
    """Force a file's bytes to the disk, so that a crash after the rename finds them there."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

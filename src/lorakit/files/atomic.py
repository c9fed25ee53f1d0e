"""Atomic writing: files and directories appear complete or not at all."""

import atexit
import ctypes
import errno
import os
import re
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lorakit.errors import OutputExistsError
from lorakit.files.disks import reporting_disk_errors

_NAME_SHOWN = 40
"""Number of a name's characters used in its temporary name, which must fit a directory entry."""

_AT_CWD, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""

_LOCK_WAIT_S, _PAUSE_S = 5.0, 0.001
"""Maximum wait for another process that moves files into the same directory."""

_unfinished: set[Path] = set()
"""Temporary paths to remove when the process ends."""


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; move it into place when the block ends.

    If the block raises, the temporary file is removed and an existing file stays unchanged.

    Args:
        path: The file to write; its directory must exist.

    Raises:
        DiskError: The disk is full or not writable.
    """
    with replacing_files(path) as (temporary,):
        yield temporary


@contextmanager
def replacing_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Yield temporary paths beside `paths` to write to; move them into place when the block ends.

    All files are complete and flushed to the disk before the first is moved. They are moved in the
    given order, so a process that is killed meanwhile leaves new files first and old ones after
    them. Several processes that write the same files move theirs one process at a time.

    Args:
        paths: The files to write, in one existing directory.

    Raises:
        DiskError: The disk is full or not writable.
    """
    with reporting_disk_errors(paths[0]), ExitStack() as stack:
        made = [stack.enter_context(_removing_at_exit(_temporary_path(path))) for path in paths]
        modes = [_create(temporary) for temporary in made]
        yield tuple(made)
        for temporary, mode in zip(made, modes, strict=True):
            temporary.chmod(mode)  # the writer may have replaced the file
            _flush(temporary)
        with _locking_moves_into(paths[0].parent):
            for temporary, path in zip(made, paths, strict=True):
                os.replace(temporary, path)
        _flush(paths[0].parent)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file with Unix newlines atomically."""
    with replacing_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def creating_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path` to fill; rename it to `path` when the block ends.

    All files in it get the permissions of ordinary files.

    Args:
        path: The directory to create; it must not exist or be empty. A link is followed.

    Raises:
        DiskError: The disk is full or not writable.
    """
    path = _without_link(path)
    with _filling_directory(path) as temporary:
        yield temporary
        _flush_tree(temporary)
        os.replace(temporary, path)
        _flush(path.parent)


@contextmanager
def replacing_directory(path: Path, last: Sequence[str] = ()) -> Iterator[Path]:
    """Yield a temporary directory beside `path` to fill; it replaces `path` when the block ends.

    `path` is always the old directory or the new one. If the file system cannot exchange two
    directories, the new files replace the old ones one by one.

    Args:
        path: The directory to create, or to replace with all its contents. A link is followed.
        last: Names of the files to replace last, in this order, if files are replaced one by one.

    Raises:
        DiskError: The disk is full or not writable.
    """
    path = _without_link(path)
    with _filling_directory(path) as temporary:
        yield temporary
        _flush_tree(temporary)
        if not path.is_dir() or not any(path.iterdir()):
            os.replace(temporary, path)
        elif not _exchange(temporary, path):
            _replace_one_by_one(temporary, path, last)
        _flush(path.parent)


def require_new_directory(path: Path, what: str, step: str = "Name another one.") -> None:
    """Raise unless a directory may be created at a path.

    Args:
        path: The new directory; an empty one may exist there.
        what: What will be written there, for the message.
        step: What to do if it is occupied, for the message.

    Raises:
        OutputExistsError: The path is a file or below one, or a directory that holds files.
    """
    nearest = next((place for place in (path, *path.parents) if place.exists()), path)
    if nearest.exists() and not nearest.is_dir():
        problem = f"{'it' if nearest == path else nearest} is a file"
    elif nearest == path and path.exists() and any(path.iterdir()):
        problem = "it holds files already"
    else:
        return
    raise OutputExistsError(
        f"Cannot write {what} to {path}: {problem}, expected a new or empty directory. {step}"
    )


@contextmanager
def scratch_directory(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Yield a temporary directory that is removed when the block, or the process, ends.

    Args:
        prefix: Prefix of its name.
        parent: Directory to create it in; None takes the system's temporary directory.

    Raises:
        DiskError: The disk is full or not writable.
    """
    where = parent or Path(tempfile.gettempdir())
    with (
        reporting_disk_errors(where),
        _removing_at_exit(Path(tempfile.mkdtemp(prefix=prefix, dir=where))) as directory,
    ):
        yield directory


def lasting_scratch_directory(prefix: str, parent: Path | None = None) -> Path:
    """Create a temporary directory that is removed when the process ends, also by a signal.

    Takes the arguments of `scratch_directory` and raises its errors.
    """
    where = parent or Path(tempfile.gettempdir())
    with reporting_disk_errors(where):
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
    _unfinished.add(directory)
    atexit.register(_remove, directory)
    return directory


def remove_unfinished() -> None:
    """Remove all temporary files and directories, before the process is terminated."""
    for path in tuple(_unfinished):
        _remove(path)


def leftovers(directory: Path, names: Iterable[str]) -> list[Path]:
    """Return temporary paths that killed processes have left in a directory.

    Args:
        directory: The directory to search.
        names: Names of the files and directories that are written in it.
    """
    known = "|".join(re.escape(name[:_NAME_SHOWN]) for name in names)
    left = re.compile(rf"\.(?:{known})\.[0-9a-f]{{8}}")
    return sorted(path for path in directory.glob(".*") if left.fullmatch(path.name))


def _without_link(path: Path) -> Path:
    """Return where a link leads, as a directory cannot be moved to the place of a link."""
    return path.resolve() if path.is_symlink() else path


def _temporary_path(path: Path) -> Path:
    """Return a new hidden path beside `path`, with a name that `leftovers` recognizes."""
    return path.with_name(f".{path.name[:_NAME_SHOWN]}.{secrets.token_hex(4)}")


@contextmanager
def _filling_directory(path: Path) -> Iterator[Path]:
    with reporting_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _removing_at_exit(_temporary_path(path)) as temporary:
            temporary.mkdir()
            yield temporary


@contextmanager
def _removing_at_exit(temporary: Path) -> Iterator[Path]:
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


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two directories atomically; return False if the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    names = (os.fsencode(one), os.fsencode(other))
    if rename(_AT_CWD, names[0], _AT_CWD, names[1], _EXCHANGE) == 0:
        return True
    error = ctypes.get_errno()
    if error in (errno.EINVAL, errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP):
        return False
    raise OSError(error, os.strerror(error), str(other))


def _replace_one_by_one(source: Path, target: Path, last: Sequence[str]) -> None:
    """Move all files of a directory into another, then delete the other's remaining files."""
    new = [file.relative_to(source) for file in source.rglob("*") if file.is_file()]
    with _locking_moves_into(target):
        for name in sorted(new, key=lambda name: (_order(name, last), name)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(source / name, target / name)
        for file in target.rglob("*"):
            if not file.is_dir() and file.relative_to(target) not in new:
                file.unlink()
    _flush(target)


@contextmanager
def _locking_moves_into(directory: Path) -> Iterator[None]:
    """Inside the block, keep other processes from moving files into a directory.

    Continues without the lock if the file system has none, or its holder does not release it.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        end = time.monotonic() + _LOCK_WAIT_S
        while time.monotonic() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(_PAUSE_S)
            except OSError:
                break
            else:
                break
        yield
    finally:
        os.close(descriptor)  # releases the lock


def _order(name: Path, last: Sequence[str]) -> int:
    return last.index(str(name)) if str(name) in last else -1


def _create(path: Path) -> int:
    """Create an empty file and return the permissions that the system gives it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)


def _flush_tree(directory: Path) -> None:
    """Flush a directory tree to the disk, with the permissions of ordinary files."""
    mode = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)  # safetensors writes files that only the owner may read
        if path.is_file() or path.is_dir():
            _flush(path)
    _flush(directory)


def _flush(path: Path) -> None:
    """Flush a file to the disk, so that a crash after the rename does not lose it.

    For a directory this flushes its entries, if the system can open directories.
    """
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files and directories that appear whole or not at all, and replace older ones at once."""

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

from lorakit.files.disks import telling_of_disk

_NAME_SHOWN = 40
"""Characters of a name that its temporary one begins with: both have to fit a directory entry."""

_AT_CWD, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""

_TURN_S, _PAUSE_S = 5.0, 0.001
"""How long a process waits for another that moves files into the same directory."""

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
    with replacing_files(path) as (temporary,):
        yield temporary


@contextmanager
def replacing_files(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Give temporary paths beside `paths` to write to; move them into place when the block ends.

    All are complete and on the disk before the first takes its place. They are moved in the order
    given, so a process that is killed meanwhile leaves new files up to one of them, and old ones
    after it. Of several processes that write the same files, one after the other moves its own.

    Args:
        paths: The files to make, in one directory, which must exist.

    Raises:
        DiskError: The disk is full, or may not be written to.
    """
    with telling_of_disk(paths[0]), ExitStack() as stack:
        made = [stack.enter_context(_removed_at_the_end(_beside(path))) for path in paths]
        modes = [_create(temporary) for temporary in made]
        yield tuple(made)
        for temporary, mode in zip(made, modes, strict=True):
            temporary.chmod(mode)  # a writer may have put another file there
            _flush(temporary)
        with _turn_in(paths[0].parent):
            for temporary, path in zip(made, paths, strict=True):
                os.replace(temporary, path)
        _flush(paths[0].parent)


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
    with _filled_directory(path) as temporary:
        yield temporary
        _flush_tree(temporary)
        os.replace(temporary, path)
        _flush(path.parent)


@contextmanager
def replacing_directory(path: Path, last: Sequence[str] = ()) -> Iterator[Path]:
    """Give a temporary directory beside `path` to fill; it takes the place of `path` at the end.

    Whoever opens `path` finds the old directory or the new one, never none. Where the file system
    cannot exchange two directories, the new files replace the old ones one by one.

    Args:
        path: The directory to make or to replace, with everything in it.
        last: Names of the files that are replaced last where that is done one by one, in this
            order.

    Raises:
        DiskError: The disk is full, or may not be written to.
    """
    with _filled_directory(path) as temporary:
        yield temporary
        _flush_tree(temporary)
        if not path.is_dir() or not any(path.iterdir()):
            os.replace(temporary, path)
        elif not _exchange(temporary, path):
            _replace_one_by_one(temporary, path, last)
        _flush(path.parent)


@contextmanager
def scratch_directory(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """Give a temporary directory that is gone when the block, or the process, ends.

    Args:
        prefix: Of its name.
        parent: Where it lies; None takes the system's directory for temporary files.

    Raises:
        DiskError: The disk is full, or may not be written to.
    """
    where = parent or Path(tempfile.gettempdir())
    with (
        telling_of_disk(where),
        _removed_at_the_end(Path(tempfile.mkdtemp(prefix=prefix, dir=where))) as made,
    ):
        yield made


def lasting_scratch_directory(prefix: str, parent: Path | None = None) -> Path:
    """Make a temporary directory that is gone when the process ends, by a signal too.

    Args:
        prefix: Of its name.
        parent: Where it lies; None takes the system's directory for temporary files.

    Raises:
        DiskError: The disk is full, or may not be written to.
    """
    where = parent or Path(tempfile.gettempdir())
    with telling_of_disk(where):
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=where))
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
    known = "|".join(re.escape(name[:_NAME_SHOWN]) for name in names)
    left = re.compile(rf"\.(?:{known})\.[a-z0-9_]{{8}}")
    return sorted(path for path in directory.glob(".*") if left.fullmatch(path.name))


def _beside(path: Path) -> Path:
    """Return a new name in a path's directory, hidden and short enough for a directory entry.

    `leftovers` knows it again.
    """
    return path.with_name(f".{path.name[:_NAME_SHOWN]}.{secrets.token_hex(4)}")


@contextmanager
def _filled_directory(path: Path) -> Iterator[Path]:
    with telling_of_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _removed_at_the_end(_beside(path)) as temporary:
            temporary.mkdir()
            yield temporary


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


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two directories at once; return False where the system cannot."""
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
    """Move the files of a directory over those of another, then delete what it does not have."""
    new = [file.relative_to(source) for file in source.rglob("*") if file.is_file()]
    with _turn_in(target):
        for name in sorted(new, key=lambda name: (_order(name, last), name)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(source / name, target / name)
        for file in target.rglob("*"):
            if not file.is_dir() and file.relative_to(target) not in new:
                file.unlink()
    _flush(target)


@contextmanager
def _turn_in(directory: Path) -> Iterator[None]:
    """Inside the block, let no other process move files into a directory.

    Where the file system has no locks, or whoever has the lock does not go on, it does without.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        end = time.monotonic() + _TURN_S
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
        os.close(descriptor)  # this gives the lock back


def _order(name: Path, last: Sequence[str]) -> int:
    return last.index(str(name)) if str(name) in last else -1


def _create(path: Path) -> int:
    """Make an empty file and return the permissions that the system gives it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return os.fstat(descriptor).st_mode & 0o777
    finally:
        os.close(descriptor)


def _flush_tree(directory: Path) -> None:
    """Force what is in a directory to the disk, with the permissions of ordinary files."""
    mode = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)  # writers of safetensors make files for their owner alone
        if path.is_file() or path.is_dir():
            _flush(path)
    _flush(directory)


def _flush(path: Path) -> None:
    """Force a file's bytes to the disk, so that a crash after the rename finds them there.

    Of a directory these are the names in it; not every system can open one.
    """
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

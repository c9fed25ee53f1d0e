"""Disks that are full, read-only or closed to us, told in one sentence whoever ran into them.

Python raises an OSError then; torch, safetensors, Arrow and tokenizers raise errors of their own
that have its text in them, or only say that a write failed. All of them are told here.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lorakit.errors import DiskError, LorakitError

_REASONS = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "has no more room for this user: the quota is used up",
    errno.EROFS: "is read-only",
    errno.EACCES: "may not be written to by this user",
    errno.EPERM: "may not be written to by this user",
    errno.EFBIG: "or this user's limit (ulimit -f) does not take a file of that size",
    errno.EIO: "fails to read or write (an input/output error)",
}
_ABOUT_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ABOUT_THE_DISK = (*_ABOUT_SPACE, errno.EROFS)
_NO_TEMPORARY = "No usable temporary directory"  # Python's
_NO_ROOM = "Not enough disk space"  # of datasets
_CACHES = ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "TMPDIR")
_IN_TEXT = re.compile(r"(?:os error |\[[Ee]rrno )(\d+)")
_FAILED_WRITES = re.compile(
    # torch.save with and without a zip archive; safetensors, tokenizers; numpy's tofile
    r"PytorchStreamWriter failed|inline_container|file write failed|unexpected pos \d+"
    r"|iostream error|Error while serializing|requested and \d+ written"
)
_TEMPORARY_NAME = re.compile(r"^\.(.+)\.[0-9a-f]{8}$")
_NEARLY_FULL_BYTES = 1 << 20
"""With less room than that, a write that failed for no stated reason failed for want of room."""
_KILO = 1000


@contextmanager
def telling_of_disk(
    path: Path, what: str | None = None, needs: Callable[[], int] | None = None
) -> Iterator[None]:
    """Inside the block, raise `DiskError` for what goes wrong with the disk of `path`.

    Args:
        path: The file or directory that is written.
        what: What is in it; None says the name alone.
        needs: Returns about how many bytes it takes.

    Raises:
        DiskError: The disk is full, read-only, or may not be written to.
    """
    try:
        yield
    except Exception as error:
        told = disk_error(error, path, what, needs)
        if told is None:
            raise
        raise told from error


def disk_error(
    error: BaseException,
    path: Path,
    what: str | None = None,
    needs: Callable[[], int] | None = None,
) -> DiskError | None:
    """Return an error as one about a disk, or None if it is about something else.

    Args:
        error: Raised while something was written.
        path: The file or directory that was written, for errors that do not name it.
        what: What is in it; None says the name alone.
        needs: Returns about how many bytes it takes.
    """
    if isinstance(error, DiskError):
        return None
    if _NO_TEMPORARY in str(error):
        return DiskError(
            "Cannot write temporary files: no directory for them has room and can be written to "
            f"({str(error).partition('found in ')[2]}). Set the environment variable TMPDIR to one."
        )
    number = _number_of(error, path)
    is_told = isinstance(error, LorakitError)  # it may have come from a file that was read
    if number is None or (is_told and number not in _ABOUT_THE_DISK):
        return None
    file = _named_by(error)
    is_elsewhere = file is not None and path.parent.absolute() not in file.absolute().parents
    if is_elsewhere and number not in _ABOUT_THE_DISK:
        return None  # about a file that was read
    place = file if file is not None and is_elsewhere else _at_fault(number, path)
    named = _shown(place)
    subject = f"{what} to {named}" if what is not None and place == path else f"to {named}"
    room = _room(place, needs) if number in _ABOUT_SPACE else ""
    return DiskError(
        f"Cannot write {subject}: the disk at {mount_point(place)} {_REASONS[number]}{room}. "
        + _remedy(number, place)
    )


def _number_of(error: BaseException, path: Path) -> int | None:
    """Return the error number of what is wrong with the disk, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _REASONS:
            return seen.errno
        text = str(seen)
        found = _IN_TEXT.search(text)
        if found is not None and int(found[1]) in _REASONS:
            return int(found[1])
        if _NO_ROOM in text:
            return errno.ENOSPC
        if _FAILED_WRITES.search(text):
            return _reason_at(path)
        seen = seen.__cause__ or seen.__context__
    return None


def _at_fault(number: int, path: Path) -> Path:
    """Return where the write went that failed: to `path`, or to a cache on another disk."""
    if number not in (errno.ENOSPC, errno.EROFS) or _is_wrong(number, path):
        return path
    caches = (Path(os.environ[name]) for name in _CACHES if os.environ.get(name))
    others = (*caches, Path.home() / ".cache", Path(tempfile.gettempdir()))
    return next((other for other in others if _is_wrong(number, other)), path)


def _is_wrong(number: int, path: Path) -> bool:
    folder = _existing(path)
    if number == errno.EROFS:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    return shutil.disk_usage(folder).free < _NEARLY_FULL_BYTES


def _reason_at(path: Path) -> int | None:
    """Return what keeps a path from being written to, found by looking and trying."""
    for number in (errno.EROFS, errno.ENOSPC):
        if _is_wrong(number, path):
            return number
    try:
        with tempfile.TemporaryFile(dir=_existing(path)) as file:
            file.write(b"\0" * _NEARLY_FULL_BYTES)
            file.flush()
    except OSError as error:
        return error.errno if error.errno in _REASONS else None
    return None


def _named_by(error: BaseException) -> Path | None:
    name = getattr(error, "filename", None)
    return Path(os.fsdecode(name)) if isinstance(name, (str, bytes)) and name else None


def _room(path: Path, needs: Callable[[], int] | None) -> str:
    usage = shutil.disk_usage(_existing(path))
    needed = f"; it needs about {size_text(needs())}" if needs is not None else ""
    return f" ({size_text(usage.free)} free of {size_text(usage.total)}{needed})"


def _remedy(number: int, path: Path) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "Make room there, or write to another disk."
    if number == errno.EFBIG:
        return "Raise the limit, or write to another disk."
    if number == errno.EIO:
        return "Look at the system's log (dmesg), and write to another disk."
    return f"Give {_existing(path)} write permission, or write elsewhere."


def _shown(path: Path) -> Path:
    """Return where a file is to appear, for the temporary path it is written to.

    >>> _shown(Path("runs/.adapter.0a1b2c3d/adapter_config.json")).as_posix()
    'runs/adapter/adapter_config.json'
    """
    return Path(*(_TEMPORARY_NAME.sub(r"\1", part) for part in path.parts))


def mount_point(path: Path) -> Path:
    """Return where the disk that holds a path is mounted.

    >>> mount_point(Path("/"))
    PosixPath('/')
    """
    place = _existing(path)
    while not os.path.ismount(place) and place != place.parent:
        place = place.parent
    return place


def _existing(path: Path) -> Path:
    """Return the nearest directory of a path that is there."""
    place = path.absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    return place


def size_text(size_bytes: float) -> str:
    """Return a size in decimal units.

    >>> [size_text(n) for n in (512, 2_345, 9_870_000, 16_000_000_000)]
    ['512 B', '2.3 kB', '9.9 MB', '16.0 GB']
    """
    units = ["B", "kB", "MB", "GB", "TB"]
    size, unit = float(size_bytes), 0
    while size >= _KILO and unit < len(units) - 1:
        size, unit = size / _KILO, unit + 1
    return f"{size:.0f} {units[unit]}" if unit == 0 else f"{size:.1f} {units[unit]}"

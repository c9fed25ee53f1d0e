"""Clear errors for disks that are full, read-only or not writable.

Python raises an OSError for these. torch, safetensors, Arrow and tokenizers raise other errors that
contain its text, or only report that a write failed. All of them become one `DiskError`.
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
    errno.EFBIG: "or this user's limit (ulimit -f) does not allow a file of that size",
    errno.EIO: "fails to read or write (an input/output error)",
}
_ABOUT_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ABOUT_THE_DISK = (*_ABOUT_SPACE, errno.EROFS)
_NO_TEMPORARY = "No usable temporary directory"  # from Python
_NO_ROOM = "Not enough disk space"  # from datasets
_CACHES = ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "TMPDIR")
_IN_TEXT = re.compile(r"(?:os error |\[[Ee]rrno )(\d+)")
_FAILED_WRITES = re.compile(
    # torch.save with and without a zip archive; safetensors, tokenizers; numpy's tofile
    r"PytorchStreamWriter failed|inline_container|file write failed|unexpected pos \d+"
    r"|iostream error|Error while serializing|requested and \d+ written"
)
_TEMPORARY_NAME = re.compile(r"^\.(.+)\.[0-9a-f]{8}$")
_NEARLY_FULL_BYTES = 1 << 20
"""Below this, a write that failed without a reason is taken to have failed for lack of space."""
_KILO = 1000


@contextmanager
def reporting_disk_errors(
    path: Path, what: str | None = None, needs: Callable[[], int] | None = None
) -> Iterator[None]:
    """Inside the block, turn errors of the disk that holds `path` into a `DiskError`.

    Args:
        path: The file or directory being written.
        what: Description of its contents for the message; None names the path only.
        needs: Returns the approximate number of bytes needed.

    Raises:
        DiskError: The disk is full, read-only or not writable.
    """
    try:
        yield
    except Exception as error:
        about_disk = disk_error(error, path, what, needs)
        if about_disk is None:
            raise
        raise about_disk from error


def disk_error(
    error: BaseException,
    path: Path,
    what: str | None = None,
    needs: Callable[[], int] | None = None,
) -> DiskError | None:
    """Return the `DiskError` for an error, or None if the error is about something else.

    Args:
        error: Error raised while writing.
        path: The file or directory being written, for errors that do not name it.
        what: Description of its contents for the message; None names the path only.
        needs: Returns the approximate number of bytes needed.
    """
    if isinstance(error, DiskError):
        return None
    if _NO_TEMPORARY in str(error):
        return DiskError(
            "Cannot write temporary files: no directory for them has space and is writable "
            f"({str(error).partition('found in ')[2]}). Set the environment variable TMPDIR to one."
        )
    number = _error_number(error, path)
    may_be_reading = isinstance(error, LorakitError)
    if number is None or (may_be_reading and number not in _ABOUT_THE_DISK):
        return None
    file = _file_named_in(error)
    is_elsewhere = file is not None and not _is_on_the_way(file.absolute(), path.absolute())
    if is_elsewhere and number not in _ABOUT_THE_DISK:
        return None  # about a file being read
    place = file if file is not None and is_elsewhere else _failing_path(number, path)
    named = _final_path(place)
    subject = f"{what} to {named}" if what is not None and place == path else f"to {named}"
    space = _space_text(place, needs) if number in _ABOUT_SPACE else ""
    return DiskError(
        f"Cannot write {subject}: the disk at {mount_point(place)} {_REASONS[number]}{space}. "
        + _next_step(number, place)
    )


def _error_number(error: BaseException, path: Path) -> int | None:
    """Return the errno of a disk error, or None for another error."""
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
            return _find_reason(path)
        seen = seen.__cause__ or seen.__context__
    return None


def _failing_path(number: int, path: Path) -> Path:
    """Return where the failed write went: `path`, or a cache on another disk."""
    if number not in (errno.ENOSPC, errno.EROFS) or _has_problem(number, path):
        return path
    caches = (Path(os.environ[name]) for name in _CACHES if os.environ.get(name))
    others = (*caches, Path.home() / ".cache", Path(tempfile.gettempdir()))
    return next((other for other in others if _has_problem(number, other)), path)


def _has_problem(number: int, path: Path) -> bool:
    """Return whether a path's disk is read-only (EROFS) or full (any other number)."""
    folder = _nearest_directory(path)
    if number == errno.EROFS:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    return shutil.disk_usage(folder).free < _NEARLY_FULL_BYTES


def _find_reason(path: Path) -> int | None:
    """Return why a path cannot be written to, by checking the disk and trying to write."""
    for number in (errno.EROFS, errno.ENOSPC):
        if _has_problem(number, path):
            return number
    try:
        with tempfile.TemporaryFile(dir=_nearest_directory(path)) as file:
            file.write(b"\0" * _NEARLY_FULL_BYTES)
            file.flush()
    except OSError as error:
        return error.errno if error.errno in _REASONS else None
    return None


def _file_named_in(error: BaseException) -> Path | None:
    name = getattr(error, "filename", None)
    return Path(os.fsdecode(name)) if isinstance(name, (str, bytes)) and name else None


def _is_on_the_way(file: Path, path: Path) -> bool:
    """Return whether a file is beside or below a path, or a directory that leads to it."""
    return path.parent in file.parents or file in path.parents


def _space_text(path: Path, needs: Callable[[], int] | None) -> str:
    usage = shutil.disk_usage(_nearest_directory(path))
    needed = f"; it needs about {size_text(needs())}" if needs is not None else ""
    return f" ({size_text(usage.free)} free of {size_text(usage.total)}{needed})"


def _next_step(number: int, path: Path) -> str:
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space there, or write to another disk."
    if number == errno.EFBIG:
        return "Raise the limit, or write to another disk."
    if number == errno.EIO:
        return "Check the system's log (dmesg), and write to another disk."
    return f"Give {_nearest_directory(path)} write permission, or write elsewhere."


def _final_path(path: Path) -> Path:
    """Return the final path of a file that is written to a temporary path.

    >>> _final_path(Path("runs/.adapter.0a1b2c3d/adapter_config.json")).as_posix()
    'runs/adapter/adapter_config.json'
    """
    return Path(*(_TEMPORARY_NAME.sub(r"\1", part) for part in path.parts))


def mount_point(path: Path) -> Path:
    """Return the mount point of the disk that holds a path.

    >>> mount_point(Path("/"))
    PosixPath('/')
    """
    place = _nearest_directory(path)
    while not os.path.ismount(place) and place != place.parent:
        place = place.parent
    return place


def _nearest_directory(path: Path) -> Path:
    """Return the path itself or the nearest directory above it that exists."""
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

"""Open a data file as text: detect its encoding, and refuse binary files."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from lorakit.data.progress import report_progress
from lorakit.data.reading.table import LARGE_FILE_BYTES
from lorakit.errors import DataError, escaped

_BUFFER_BYTES = 1 << 20
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is its beginning
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_BINARY_FORMATS = (
    (b"\x1f\x8b", "is compressed with gzip", "Unpack it first (gunzip)."),
    (b"BZh", "is compressed with bzip2", "Unpack it first (bunzip2)."),
    (b"\xfd7zXZ", "is compressed with xz", "Unpack it first (unxz)."),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "Unpack it first (unzstd)."),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet", "Unpack it, or save it as csv."),
    (b"PAR1", "is a parquet file", "Rename it to end in .parquet."),
    (b"ARROW1", "is an Arrow file", "Convert it to parquet."),
    (b"SQLite format 3", "is a SQLite database", "Export the table as csv."),
    (
        b"version https://git-lfs.github.com/spec/",
        "is a git-lfs pointer, not the data itself",
        "Fetch the data with `git lfs pull`.",
    ),
)


class _ReportingFile(FileIO):
    """A file that can report how far it has been read, if it is large."""

    def __init__(self, path: Path, reports: bool):
        super().__init__(path)
        self._what, self._size = f"Reading {path.name}", path.stat().st_size
        self._reports = reports and self._size >= LARGE_FILE_BYTES

    def readinto(self, buffer: Any) -> int | None:
        """Read into a buffer."""
        count = super().readinto(buffer)
        if self._reports:
            report_progress(self._what, min(self.tell(), self._size), self._size, "bytes")
        return count


@contextmanager
def open_text(path: Path, key: str, *, reports: bool = True) -> Iterator[TextIO]:
    """Open a data file as text, with line endings unchanged.

    Args:
        path: The file, in UTF-8 or the encoding of its byte order mark.
        key: The recipe key that names it.
        reports: Whether to report how far a large file has been read.

    Raises:
        DataError: It is compressed or binary, or not in UTF-8; names the line of the first wrong
            byte.
    """
    with path.open("rb") as file:
        head = file.read(64)
    for magic, what, step in _BINARY_FORMATS:
        if head.startswith(magic):
            raise DataError(
                f"Could not read {key}: got '{path}', which {what}, expected text, as its ending "
                f"says. {step}"
            )
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if head.startswith(mark)), "utf-8")
    try:
        with (
            _ReportingFile(path, reports) as file,
            TextIOWrapper(BufferedReader(file, _BUFFER_BYTES), encoding, newline="") as stream,
        ):
            yield stream
    except UnicodeEncodeError:  # not from reading
        raise
    except UnicodeError as error:
        raise DataError(
            f"Could not read {key}: got '{path}', {_wrong_byte(path, encoding)}, expected "
            f"{encoding.removesuffix('-sig').upper()}. Save the file as UTF-8, for example with "
            "`iconv -f LATIN1 -t UTF-8`."
        ) from error


def _wrong_byte(path: Path, encoding: str) -> str:
    """Say where a file cannot be decoded."""
    if encoding.startswith("utf-8"):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    before = escaped(line[: error.start].decode("utf-8")[-20:])
                    return (
                        f"whose line {number} has the byte 0x{line[error.start]:02x} after "
                        f"'{before}'"
                    )
    return "which does not hold what its byte order mark says"

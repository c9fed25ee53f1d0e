"""Which errors are about a disk, and what is told of them."""

import errno
import shutil
from collections import namedtuple

import pytest

from lorakit.errors import AdapterFileError, DiskError
from lorakit.files.disks import disk_error, mount_point, reporting_disk_errors

USAGE = namedtuple("USAGE", "total used free")


@pytest.fixture
def full(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: USAGE(2_000_000, 2_000_000, 0))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full (0 B free of 2.0 MB)"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the quota is used up (0 B free"),
        (OSError(errno.EROFS, "Read-only file system"), "is read-only. Give"),
        (PermissionError(errno.EACCES, "Permission denied"), "may not be written to by this user"),
        (OSError(errno.EFBIG, "File too large"), "ulimit -f"),
        (OSError(errno.EIO, "Input/output error"), "input/output error"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64"), "is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write"), "is full"),
        (RuntimeError("basic_ios::clear: iostream error"), "is full"),
        (Exception("Error while serializing: I/O error: No space (os error 28)"), "is full"),
        (OSError("Not enough disk space. Needed: 2 GiB"), "is full"),
        (OSError("32 requested and 4 written"), "is full"),
    ],
)
def test_an_error_about_a_disk_is_reported_in_one_sentence(error, sentence, tmp_path, full):
    found = disk_error(error, tmp_path / "file", "a checkpoint")
    assert isinstance(found, DiskError)
    message = str(found)
    assert message.startswith(
        f"Cannot write a checkpoint to {tmp_path / 'file'}: the disk at {mount_point(tmp_path)} "
    )
    assert sentence in message and "\n" not in message


def test_the_reason_is_looked_for_behind_other_errors(tmp_path, full):
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("An error occurred while generating the dataset") from None
    except RuntimeError as error:
        assert disk_error(error, tmp_path) is not None


@pytest.mark.parametrize(
    "error",
    [
        ValueError("something else"),
        RuntimeError("PytorchStreamWriter failed"),  # and the disk has room
        PermissionError(errno.EACCES, "Permission denied", "/elsewhere/base.safetensors"),
        FileNotFoundError(errno.ENOENT, "No such file"),
        KeyError("x"),
    ],
)
def test_other_errors_stay_what_they_are(error, tmp_path):
    with pytest.raises(type(error)) as caught, reporting_disk_errors(tmp_path / "file"):
        raise error
    assert caught.value is error


def test_a_directory_above_that_cannot_be_made_is_about_the_disk(tmp_path):
    above = tmp_path / "runs"
    error = PermissionError(errno.EACCES, "Permission denied", str(above))
    assert f"Give {tmp_path} write permission" in str(disk_error(error, above / "a" / "b"))
    read = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "data" / "x.csv"))
    assert disk_error(read, above / "a") is None


def test_what_lorakit_has_said_of_a_file_it_read_is_kept(tmp_path):
    try:
        try:
            raise PermissionError(errno.EACCES, "Permission denied")
        except OSError as error:
            raise AdapterFileError("Cannot read it.") from error
    except AdapterFileError as error:
        assert disk_error(error, tmp_path) is None


def test_the_disk_that_is_full_is_named_not_that_of_the_output(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("HF_HOME", str(cache))
    room = {cache: USAGE(1_000, 1_000, 0)}
    usual = USAGE(10**9, 0, 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: room.get(path, usual))
    error = disk_error(OSError(errno.ENOSPC, "No space left on device"), tmp_path / "run")
    assert f"to {cache}: " in str(error) and "0 B free of 1.0 kB" in str(error)


def test_it_says_how_much_is_needed(tmp_path, full):
    needed = r"0 B free of 2\.0 MB; it needs about 5\.0 MB"
    with (
        pytest.raises(DiskError, match=needed),
        reporting_disk_errors(tmp_path, needs=lambda: 5_000_000),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_no_place_for_temporary_files(tmp_path):
    error = FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")
    assert "(['/tmp', '/var/tmp']). Set the environment variable TMPDIR" in str(
        disk_error(error, tmp_path)
    )

"""Two processes never write into one directory; a dead one keeps nobody out."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from lorakit.errors import OutputExistsError
from lorakit.recipes import directory_lock
from lorakit.recipes.directory_lock import LOCK_NAME, locking_directory
from lorakit.training import train


def take(path):
    with locking_directory(path):
        pass


def test_the_second_process_learns_who_holds_the_lock(tmp_path):
    with locking_directory(tmp_path), pytest.raises(OutputExistsError) as caught:
        take(tmp_path)
    message = str(caught.value)
    assert message.startswith(
        f"Cannot write to output {tmp_path}: it is in use by process {os.getpid()} on "
    )
    assert message.endswith("Wait for it or stop it, or set another `output`.")
    assert list(tmp_path.iterdir()) == []
    take(tmp_path)  # and it can be had again


def test_a_lock_that_cannot_be_deleted_hides_no_error(tmp_path, monkeypatch):
    def fail(path, **_):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as patch, pytest.raises(KeyError), locking_directory(tmp_path):
        patch.setattr(Path, "unlink", fail)
        raise KeyError
    take(tmp_path)


def test_a_killed_process_holds_nothing(tmp_path):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with locking_directory(tmp_path):
            os.write(writer, b".")
            signal.pause()
    assert os.read(reader, 1) == b"."
    with pytest.raises(OutputExistsError, match=f"in use by process {child} on"):
        take(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK_NAME).exists()
    take(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"pid": "x"}'])
def test_a_holder_that_cannot_be_read_is_another_process(tmp_path, text):
    with locking_directory(tmp_path):
        (tmp_path / LOCK_NAME).write_text(text)
        with pytest.raises(OutputExistsError, match=r"in use by .*delete .*\.lock"):
            take(tmp_path)


def test_workers_of_a_killed_process_are_waited_for(tmp_path, monkeypatch):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    waited = []
    monkeypatch.setattr(directory_lock.time, "sleep", lambda s: waited.append(s))
    monkeypatch.setattr(directory_lock, "_WORKERS_END_S", 0.05)
    with locking_directory(tmp_path):
        holder = json.loads((tmp_path / LOCK_NAME).read_text()) | {"pid": child}
        (tmp_path / LOCK_NAME).write_text(json.dumps(holder))
        with pytest.raises(OutputExistsError, match="a network file system may not notice"):
            take(tmp_path)
    assert waited


def test_a_run_is_trained_by_one(recipe, tmp_path):
    refused = []

    def listen(name, payload):
        if name == "step" and payload["step"] == 2:
            for resume in (False, True):
                with pytest.raises(OutputExistsError) as caught:
                    train(recipe(), resume=resume)
                refused.append(str(caught.value))

    train(recipe(), on_event=listen)
    assert len(refused) >= 2
    assert all(f"in use by process {os.getpid()}" in message for message in refused)
    assert not (tmp_path / "run" / LOCK_NAME).exists()

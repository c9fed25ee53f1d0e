"""A disk that fills up at any write of a run: one sentence, and a run that goes on."""

import errno
import os
import shutil
import threading
from collections import namedtuple

import pytest
import torch
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread

from fixtures.runs import adapter_bytes
from lorakit.adapters.peft_files import files
from lorakit.errors import DiskError
from lorakit.files.disks import mount_point
from lorakit.training import RunDirectory, train
from lorakit.training.callbacks import silencing_writer_threads

STEPS = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
USAGE = namedtuple("USAGE", "total used free")

# What is called for a write, the error it gives on a full disk, and which of its calls fail.
FULL = OSError(errno.ENOSPC, "No space left on device")
WRITES = {
    "a file of torch's": (torch, "save", RuntimeError("[enforce fail at inline_container.cc:"), 5),
    "the trained adapter": (files, "write_safetensors", FULL, 3),
    "moving a file": (os, "replace", OSError(errno.EDQUOT, "Disk quota exceeded"), 9),
    "the last file": (os, "replace", FULL, -1),
    "a row of metrics": (os, "fsync", FULL, 12),
}


def failing(monkeypatch, where, name, error, number):
    """Let a call fail, counted from 1, with a disk that is full by then; count the calls."""
    whole, calls = getattr(where, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            monkeypatch.setattr(shutil, "disk_usage", lambda path: USAGE(10**9, 10**9, 0))
            raise error
        return whole(*args, **kwargs)

    monkeypatch.setattr(where, name, counted)
    return calls


@pytest.fixture
def straight(recipe, monkeypatch):
    """The bits of a run that was left alone, and how many files it has put in place."""
    with monkeypatch.context() as patch:
        calls = failing(patch, os, "replace", None, None)
        result = train(recipe("straight", training=STEPS))
    return adapter_bytes(result), len(calls)


def test_any_write_may_fail_and_the_run_goes_on(recipe, straight, monkeypatch, tmp_path, capfd):
    bits, replaced = straight
    for number, (where, name, error, call) in enumerate(WRITES.values()):
        output = f"run-{number}"
        with monkeypatch.context() as patch, pytest.raises(DiskError) as caught:
            failing(patch, where, name, error, call if call > 0 else replaced)
            train(recipe(output, training=STEPS))
        message = str(caught.value)
        assert message.startswith("Cannot write ") and str(tmp_path / output) in message
        assert "is full (0 B free of 1.0 GB" in message or "quota is used up (0 B free" in message
        assert "with --resume the run" in message
        run = RunDirectory.open(tmp_path / output)
        assert not run.is_finished and run.tensorboard.is_dir() and run.metrics()
        assert adapter_bytes(train(recipe(output, training=STEPS), resume=True)) == bits
    assert capfd.readouterr().err == ""


def test_an_error_says_that_a_run_directory_cannot_be_made(recipe, tmp_path, monkeypatch):
    def read_only(self, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    with monkeypatch.context() as patch, pytest.raises(DiskError) as caught:
        patch.setattr(type(tmp_path), "mkdir", read_only)
        train(recipe())
    assert f"the disk at {mount_point(tmp_path)} is read-only. Give " in str(caught.value)
    assert str(caught.value).endswith("The run has not started.")


def test_tensorboard_s_threads_end_quietly(monkeypatch):
    reported = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    with silencing_writer_threads():
        writer = _AsyncWriterThread(None, None, 1)  # fails at once
        other = threading.Thread(target=lambda: 1 / 0)
        for thread in (writer, other):
            thread.start()
            thread.join()
    assert [ended.exc_type for ended in reported] == [ZeroDivisionError]

"""Computations in processes that have torch already."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from lorakit.errors import ConfigError, LorakitError, Problem, StoppedError
from lorakit.runs.warm_process import Computation, say


def here():
    return os.getcwd(), "torch" in sys.modules


def refuse():
    raise ConfigError("In r: wrong.", [Problem("wrong.", "lora.r", 3)])


def fail():
    raise ZeroDivisionError("by zero\nand more")


def end():
    os.kill(os.getpid(), signal.SIGKILL)


def count():
    say("Counting")
    say("Counting", 0.5)
    return 3


def wait_beside(name):
    Path(name).touch()
    time.sleep(60)


def cancel_after(computation, file):
    while not file.exists():
        time.sleep(0.01)
    computation.cancel()


def test_a_result_comes_from_a_process_in_the_folder_that_has_the_libraries(tmp_path):
    assert Computation(tmp_path, here).result() == (str(tmp_path), True)


def test_what_a_computation_says_arrives_before_its_result(tmp_path):
    told = []
    assert Computation(tmp_path, count).result(lambda *said: told.append(said)) == 3
    assert told == [("Counting", None), ("Counting", 0.5)]
    assert Computation(tmp_path, count).result() == count() == 3  # nobody listens


def test_an_error_of_lorakit_arrives_as_it_was_raised(tmp_path):
    with pytest.raises(ConfigError, match="In r: wrong") as raised:
        Computation(tmp_path, refuse).result()
    assert raised.value.problems == (Problem("wrong.", "lora.r", 3),)


def test_any_other_error_and_a_death_are_said_in_a_sentence(tmp_path):
    with pytest.raises(LorakitError, match=r"failed unexpectedly \(ZeroDivisionError: by zero\)"):
        Computation(tmp_path, fail).result()
    with pytest.raises(LorakitError, match=r"without an answer \(exit code -9\)"):
        Computation(tmp_path, end).result()


def test_a_computation_is_cancelled_before_and_while_it_runs(tmp_path):
    early = Computation(tmp_path, time.sleep, 60)
    early.cancel()
    with pytest.raises(StoppedError, match="Cancelled"):
        early.result()
    running = Computation(tmp_path, wait_beside, "began")
    threading.Thread(target=cancel_after, args=(running, tmp_path / "began")).start()
    began = time.monotonic()
    with pytest.raises(StoppedError, match="Cancelled"):
        running.result()
    assert time.monotonic() - began < 60

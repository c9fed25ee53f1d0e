"""Computations in processes that have torch already."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from lorakit.errors import ConfigError, LorakitError, Problem, StoppedError
from lorakit.runs.warm_process import Computation


def here():
    return os.getcwd(), "lorakit.planning" in sys.modules


def refuse():
    raise ConfigError("In r: wrong.", [Problem("wrong.", "lora.r", 3)])


def fail():
    raise ZeroDivisionError("by zero\nand more")


def end():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_result_comes_from_a_process_in_the_folder_that_has_the_libraries(tmp_path):
    assert Computation(tmp_path, here).result() == (str(tmp_path), True)


def test_an_error_of_lorakit_arrives_as_it_was_raised(tmp_path):
    with pytest.raises(ConfigError, match="In r: wrong") as raised:
        Computation(tmp_path, refuse).result()
    assert raised.value.problems == (Problem("wrong.", "lora.r", 3),)


def test_any_other_error_and_a_death_are_said_in_a_sentence(tmp_path):
    with pytest.raises(LorakitError, match=r"failed unexpectedly \(ZeroDivisionError: by zero\)"):
        Computation(tmp_path, fail).result()
    with pytest.raises(LorakitError, match=r"without an answer \(exit code -9\)"):
        Computation(tmp_path, end).result()


def test_a_computation_is_cancelled_at_once():
    began = time.monotonic()
    computation = Computation(Path(), time.sleep, 60)
    computation.cancel()
    with pytest.raises(StoppedError, match="Cancelled"):
        computation.result()
    assert time.monotonic() - began < 60

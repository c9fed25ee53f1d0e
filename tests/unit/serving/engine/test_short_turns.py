"""Shorter turns of threads, which end with the last block."""

import sys
import threading

import pytest

from lorakit.serving.engine import short_turns as turns
from lorakit.serving.engine.short_turns import short_turns


@pytest.fixture(autouse=True)
def usual():
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield
    sys.setswitchinterval(before)


def test_turns_are_short_until_the_last_block_ends():
    inside, may_end = threading.Event(), threading.Event()

    def run():
        with short_turns():
            inside.set()
            assert may_end.wait(30)

    thread = threading.Thread(target=run)
    with short_turns():
        thread.start()
        assert inside.wait(30)
    assert sys.getswitchinterval() == pytest.approx(
        turns._TURN_S, abs=1e-6
    )  # the thread still runs
    may_end.set()
    thread.join(30)
    assert sys.getswitchinterval() == pytest.approx(0.005, abs=1e-6)


def test_an_error_ends_them_and_shorter_ones_stay():
    with pytest.raises(OSError), short_turns():
        raise OSError
    assert sys.getswitchinterval() == pytest.approx(0.005, abs=1e-6)
    sys.setswitchinterval(0.0001)
    shorter = sys.getswitchinterval()  # whole microseconds
    with short_turns():
        assert sys.getswitchinterval() == pytest.approx(shorter, abs=1e-6)
    assert sys.getswitchinterval() == pytest.approx(shorter, abs=1e-6)

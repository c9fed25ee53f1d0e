"""A request to stop, and whether a run observes it."""

import signal

import pytest

from lorakit.training.stop_request import StopRequest


def test_the_first_signal_counts():
    stop = StopRequest()
    assert stop.number == 0
    stop.set(signal.SIGTERM)
    stop.set()
    assert stop.number == 15 and type(stop.number) is int


def test_a_request_is_observed_until_the_run_ends_or_fails():
    stop = StopRequest()
    with pytest.raises(ZeroDivisionError), stop.observing():
        assert stop.is_observed
        raise ZeroDivisionError
    assert not stop.is_observed

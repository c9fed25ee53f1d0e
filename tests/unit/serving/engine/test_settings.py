"""Limits, state and hooks of an engine."""

from dataclasses import FrozenInstanceError

import pytest

from lorakit.serving.engine import EngineHooks, EngineSettings, EngineStats


def test_they_are_values():
    for value in (EngineSettings(), EngineStats(), EngineHooks()):
        assert value == type(value)()
        with pytest.raises(FrozenInstanceError):
            value.other = 1


def test_hooks_that_are_not_given_take_no_notice():
    hooks = EngineHooks()
    assert hooks.first_token(0.1) is hooks.next_token(0.1) is hooks.step(3, 0.1) is None

"""Libraries are silenced for one command and given back their voice."""

import logging
import os
import warnings

import pytest

from lorakit.cli.quiet import quiet_libraries


def test_warnings_and_log_lines_are_silenced_and_everything_is_put_back(monkeypatch):
    monkeypatch.delenv("TRANSFORMERS_VERBOSITY", raising=False)
    monkeypatch.setenv("DATASETS_VERBOSITY", "info")
    before = (logging.getLogger("transformers").level, dict(os.environ))
    with quiet_libraries():
        warnings.warn("nobody reads this", stacklevel=1)
        assert not logging.getLogger("transformers.models").isEnabledFor(logging.WARNING)
        assert os.environ["TRANSFORMERS_VERBOSITY"] == "error"
        assert os.environ["DATASETS_VERBOSITY"] == "info"
    assert (logging.getLogger("transformers").level, dict(os.environ)) == before


def test_after_an_error_too():
    before = dict(os.environ)
    with pytest.raises(RuntimeError), quiet_libraries():
        raise RuntimeError
    assert dict(os.environ) == before

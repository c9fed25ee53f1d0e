"""Libraries are silenced for one command and given back their voice."""

import logging
import os
import warnings

import pytest

from lorakit.cli.quiet import hide_loading_bars, quiet_libraries


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


@pytest.mark.parametrize("hub_has_bars", [True, False])
def test_the_bar_for_loading_weights_is_hidden_but_not_that_for_downloads(
    hub_has_bars, monkeypatch
):
    from transformers.utils import logging as transformers_logging

    calls = []
    hub = "huggingface_hub.utils"
    monkeypatch.setattr(f"{hub}.are_progress_bars_disabled", lambda: not hub_has_bars)
    monkeypatch.setattr(f"{hub}.disable_progress_bars", lambda: calls.append("hidden"))
    monkeypatch.setattr(f"{hub}.enable_progress_bars", lambda: calls.append("shown"))
    monkeypatch.setattr(transformers_logging, "_tqdm_active", hub_has_bars)
    hide_loading_bars()
    assert not transformers_logging.is_progress_bar_enabled()
    assert calls == (["hidden", "shown"] if hub_has_bars else [])

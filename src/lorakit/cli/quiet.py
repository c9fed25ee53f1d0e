"""Keep the libraries underneath from printing over a command."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from lorakit.libraries.logs import muting_libraries

LIBRARIES = (
    *("transformers", "datasets", "trl", "accelerate", "torch", "huggingface_hub", "bitsandbytes"),
)
ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence warnings, log lines below ERROR and progress bars of other libraries.

    Commands report what a user must know of them. A variable that the user has set
    keeps its value. Everything is restored on leaving.
    """
    environment = dict(ENVIRONMENT)
    if not sys.stdout.isatty():  # on a terminal the bar of a long download is useful
        environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    added = [name for name in environment if name not in os.environ]
    os.environ.update({name: environment[name] for name in added})
    try:
        with muting_libraries(*LIBRARIES):
            yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def hide_loading_bars() -> None:
    """Hide transformers' bar for loading weights, but not the hub's for downloads.

    Imports transformers, so it is for commands that are about to use it.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as transformers_logging

    if not are_progress_bars_disabled():
        transformers_logging.disable_progress_bar()  # silences the hub's too
        enable_progress_bars()

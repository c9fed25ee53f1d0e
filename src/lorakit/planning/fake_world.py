"""Where tensors have shapes and no memory: the fake mode, and what goes with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lorakit.libraries.logs import muting_loggers
from lorakit.planning.known_values import KnownValues, known_value


class FakeWorld:
    """A fake mode that can be left and entered again, as for what needs real numbers."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.values = KnownValues(self.mode)

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Make every tensor fake in a block; random numbers drawn there leave no trace."""
        with (
            torch.random.fork_rng(devices=[]),
            _exposing_known_masks(),
            # torch logs the traceback of what is raised as an error anyway.
            muting_loggers("torch._subclasses.fake_tensor", below=logging.CRITICAL),
            self.mode,
            self.values,
        ):
            yield


@contextmanager
def _exposing_known_masks() -> Iterator[None]:
    """Let transformers look at a mask whose value is known, as it does in training.

    It looks whether a mask is all ones, and then goes without; at fake tensors it does not look.
    """
    from transformers.utils import import_utils

    library: Any = import_utils
    is_fake = library.is_fake_tensor
    library.is_fake_tensor = lambda tensor: is_fake(tensor) and known_value(tensor) is None
    try:
        yield
    finally:
        library.is_fake_tensor = is_fake

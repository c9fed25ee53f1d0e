"""Run code on fake tensors, which have shapes but no memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from lorakit.libraries.logs import muting_loggers
from lorakit.planning.known_values import KnownValues, known_value


class FakeWorld:
    """A fake mode that can be activated several times, with real tensors in between."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.values = KnownValues(self.mode)

    @contextmanager
    def activate(self) -> Iterator[None]:
        """Make every tensor in a block fake; the random state is restored afterwards."""
        with (
            torch.random.fork_rng(devices=[]),
            _exposing_known_masks(),
            # torch logs the traceback of errors that are raised anyway.
            muting_loggers("torch._subclasses.fake_tensor", below=logging.CRITICAL),
            self.mode,
            self.values,
        ):
            yield

    def fake(self, values: Any, device: torch.device) -> Any:
        """Return a batch whose tensors are fake and carry the real ones as their values.

        Args:
            values: The batch; its tensors are real.
            device: Device of the fake tensors.
        """
        return tree_map_only(torch.Tensor, lambda value: self.values.fake(value, device), values)


@contextmanager
def _exposing_known_masks() -> Iterator[None]:
    """Let transformers read a mask whose value is known, as it does in training.

    It drops a mask of ones, but does not read fake tensors.
    """
    from transformers.utils import import_utils

    library: Any = import_utils
    is_fake = library.is_fake_tensor
    library.is_fake_tensor = lambda tensor: is_fake(tensor) and known_value(tensor) is None
    try:
        yield
    finally:
        library.is_fake_tensor = is_fake

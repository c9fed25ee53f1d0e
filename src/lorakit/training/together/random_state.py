"""The random state of one run, while the passes of several are computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lorakit.ops import draw_seed
from lorakit.training.together.process_state import ProcessState


class RandomState:
    """Draws for one run what it would draw alone, from the states it has left."""

    def __init__(self, state: ProcessState):
        """Begin where a run has stopped.

        Args:
            state: The process's state as the run has left it; `write_back` moves it on.
        """
        self._state = state
        self._generator = torch.Generator()
        self._generator.set_state(state.torch_state)
        self._cuda_states = state.cuda_states

    def draw_seed(self) -> Tensor:
        """Draw the seed of a mask."""
        return draw_seed(self._generator)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Let torch's default generators be the run's inside the block."""
        torch.set_rng_state(self._generator.get_state())
        if self._cuda_states:
            torch.cuda.set_rng_state_all(self._cuda_states)
        yield
        self._generator.set_state(torch.get_rng_state())
        if self._cuda_states:
            self._cuda_states = torch.cuda.get_rng_state_all()

    def write_back(self) -> None:
        """Let the run go on after what has been drawn."""
        self._state.torch_state = self._generator.get_state()
        self._state.cuda_states = self._cuda_states

"""What a process has once, and a run expects for itself: random states, accelerate's singletons."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor

from lorakit.ops import draw_seed

_SINGLETONS: tuple[Any, ...] = (PartialState, AcceleratorState, GradientState)
"""All their instances share one dictionary, which a Trainer fills and changes."""


@dataclass
class ProcessState:
    """The state of a process as one run has left it."""

    torch_state: Tensor
    """State of torch's default generator on the CPU."""
    cuda_states: list[Tensor]
    cuda_device: int | None
    """The GPU that the thread computes on; None where none is used."""
    numpy_state: Any
    python_state: Any
    singletons: tuple[dict[str, Any], ...]
    excepthook: Any
    """What handles errors of threads; a run replaces it while it trains."""

    @classmethod
    def current(cls) -> Self:
        """Return the state of the process."""
        has_cuda = torch.cuda.is_initialized()
        return cls(
            torch.get_rng_state(),
            torch.cuda.get_rng_state_all() if has_cuda else [],
            torch.cuda.current_device() if has_cuda else None,
            np.random.get_state(),
            random.getstate(),
            tuple(dict(one._shared_state) for one in _SINGLETONS),
            threading.excepthook,
        )

    def for_new_run(self) -> ProcessState:
        """Return this state without accelerate's, as a process has it before its first run."""
        return replace(self, singletons=tuple({} for _ in _SINGLETONS))

    def restore(self) -> None:
        """Put the process into this state."""
        self.use_device()
        torch.set_rng_state(self.torch_state)
        if self.cuda_states:
            torch.cuda.set_rng_state_all(self.cuda_states)
        np.random.set_state(self.numpy_state)
        random.setstate(self.python_state)
        for one, values in zip(_SINGLETONS, self.singletons, strict=True):
            one._shared_state.clear()
            one._shared_state.update(values)
        threading.excepthook = self.excepthook

    def use_device(self) -> None:
        """Let the calling thread compute on this state's GPU, which each thread has for itself."""
        if self.cuda_device is not None:
            torch.cuda.set_device(self.cuda_device)


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

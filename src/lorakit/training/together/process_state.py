"""What a process has once, and a run expects for itself: random states, accelerate's singletons."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor

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

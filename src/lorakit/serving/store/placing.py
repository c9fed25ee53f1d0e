"""Putting adapters into the model and taking them out, in the thread that owns it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lorakit.injection.activation import remove_adapters
from lorakit.injection.detached import DetachedAdapter, attach_adapter
from lorakit.injection.new_parts import trained_dtype
from lorakit.injection.state import take_over_quantized


class Placing:
    """Exchanges the adapters of one model; no adapter acts on all rows."""

    def __init__(self, model: nn.Module, factor_dtype: torch.dtype | None):
        base = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self._model = model
        self._element_bytes = (factor_dtype or trained_dtype(base)).itemsize

    def bytes_of(self, elements: int) -> int:
        """Return the memory that an adapter with so many elements takes in the model."""
        return elements * self._element_bytes

    def keep_base_alike(self) -> None:
        """Let the base compute alike with adapters and without any.

        The outputs of a quantized base would otherwise change when the first adapter enters.
        """
        take_over_quantized(self._model)

    def remove(self, leaving: Sequence[str]) -> None:
        """Take versions out of the model."""
        if leaving:
            remove_adapters(self._model, leaving)
            self.keep_base_alike()

    def enter(self, entering: DetachedAdapter) -> None:
        """Put a version that fits into the model.

        Raises:
            LorakitError: It cannot be attached; the model does not carry it.
        """
        attach_adapter(self._model, entering)

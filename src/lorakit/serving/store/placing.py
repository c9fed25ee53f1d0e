"""Putting adapters into the model and taking them out, in the thread that owns it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from lorakit.adapters import Adapter
from lorakit.adapters.older_names import in_names_of
from lorakit.errors import AdapterMismatchError, LorakitError
from lorakit.injection import add_adapter, set_adapter
from lorakit.injection.activation import remove_adapters
from lorakit.injection.inject import trained_dtype
from lorakit.injection.selection.vocabulary import rows_needed
from lorakit.injection.state import base_modules, take_over_quantized
from lorakit.serving.store.probe import Probe


class Placing:
    """Exchanges the adapters of one model."""

    def __init__(self, model: nn.Module, factor_dtype: torch.dtype | None, probe: Probe):
        base = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self._model = model
        self._factor_dtype = factor_dtype
        self._element_bytes = (factor_dtype or trained_dtype(base)).itemsize
        self._probe = probe

    def bytes_of(self, elements: int) -> int:
        """Return the memory that an adapter with so many elements takes in the model."""
        return elements * self._element_bytes

    def keep_base_alike(self) -> None:
        """Let the base compute alike with adapters and without any.

        The outputs of a quantised base would otherwise change when the first adapter enters.
        """
        take_over_quantized(self._model)

    def remove(self, leaving: Sequence[str]) -> None:
        """Take versions out of the model."""
        if leaving:
            remove_adapters(self._model, leaving)
            self.keep_base_alike()

    def exchange(
        self, leaving: Sequence[str], name: str, carried_name: str, adapter: Adapter
    ) -> None:
        """Take versions out, put another one in, and probe it; no adapter acts on all rows.

        Raises:
            AdapterMismatchError: The adapter was made for another base.
            AdapterFileError: The probe refuses it.
            LorakitError: It cannot be added for another reason; the model does not carry it.
        """
        self.remove(leaving)
        try:
            injection = add_adapter(
                self._model, adapter, carried_name, trainable=False, dtype=self._factor_dtype
            )
        except AdapterMismatchError as error:
            raise self._named(error, name, adapter) from None
        try:
            set_adapter(self._model, None)
            self._probe.check(name, carried_name, adapter, injection)
        except BaseException:
            self.remove((carried_name,))
            raise

    def _named(self, error: LorakitError, name: str, adapter: Adapter) -> AdapterMismatchError:
        """Return the error with the adapter's name, and with a next step that a server has."""
        fitting = in_names_of(self._model, adapter)
        needed, there = rows_needed(self._model, dict(base_modules(self._model)), fitting)
        if needed > there:
            return AdapterMismatchError(
                f"Cannot serve adapter {name!r} on this base: it was trained with a vocabulary of "
                f"{needed} tokens, expected at most the {there} of the base. More tokens would "
                "change the answers of the base and of all other adapters; serve it alone, or "
                "merge it."
            )
        return AdapterMismatchError(f"Cannot serve adapter {name!r} on this base. {error}")

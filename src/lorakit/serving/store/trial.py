"""Trying adapters on a copy of a model, so that the model itself gets only those that act."""

from __future__ import annotations

import threading

import torch
from torch import nn

from lorakit.adapters import Adapter
from lorakit.adapters.older_names import in_names_of
from lorakit.errors import AdapterMismatchError, LorakitError
from lorakit.injection import add_adapter, set_adapter
from lorakit.injection.activation import remove_adapters
from lorakit.injection.detached import DetachedAdapter, detach_adapter
from lorakit.injection.selection.vocabulary import rows_needed
from lorakit.injection.state import base_modules
from lorakit.models.same_weights import copy_over_same_weights
from lorakit.serving.store.probe import Probe


class Trial:
    """A copy of a model's modules over the same weights, which no request uses.

    An adapter is added to it, probed and taken out again, in any thread, while the model itself
    runs. What comes out has been compared with the base tensor by tensor, has its dtype and its
    device, and has given finite numbers that differ from the base's.
    """

    def __init__(self, model: nn.Module, factor_dtype: torch.dtype | None, *, allow_noop: bool):
        """Copy the modules of a model.

        Args:
            model: A transformers model in evaluation mode, which does not run now.
            factor_dtype: dtype of factors and trained heads; None as in `add_adapter`.
            allow_noop: Whether an adapter may change no output.
        """
        self._model = copy_over_same_weights(model)
        self._factor_dtype = factor_dtype
        self._probe = Probe(self._model, allow_noop=allow_noop)
        self._lock = threading.Lock()

    def pass_through(self, name: str, carried_name: str, adapter: Adapter) -> DetachedAdapter:
        """Return an adapter ready to be attached to the model; one at a time is tried.

        Args:
            name: Its name for messages.
            carried_name: Its name in the model.
            adapter: Its configuration and tensors.

        Raises:
            AdapterMismatchError: It was made for another base.
            AdapterFileError: It does nothing, gives NaN or infinities, or cannot run in a batch
                beside others.
            LorakitError: It cannot be added for another reason.
        """
        with self._lock, torch.no_grad():
            try:
                injection = add_adapter(
                    self._model, adapter, carried_name, trainable=False, dtype=self._factor_dtype
                )
            except AdapterMismatchError as error:
                raise self._named(error, name, adapter) from None
            try:
                set_adapter(self._model, None)
                self._probe.check(name, carried_name, adapter, injection)
                return detach_adapter(self._model, carried_name)
            except BaseException:
                remove_adapters(self._model, (carried_name,))
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

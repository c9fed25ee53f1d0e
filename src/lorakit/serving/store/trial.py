"""Trying adapters on a copy of a model, so that the model itself gets only those that fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lorakit.adapters import Adapter
from lorakit.adapters.older_names import in_names_of
from lorakit.errors import AdapterMismatchError, LorakitError
from lorakit.injection import Injection
from lorakit.injection.detached import AdapterBuilder, DetachedAdapter
from lorakit.injection.selection.vocabulary import rows_needed
from lorakit.injection.state import base_modules
from lorakit.models.same_weights import copy_over_same_weights


@dataclass(frozen=True)
class Candidate:
    """An adapter that fits a model, and may enter it.

    Attributes:
        name: Its name for messages.
        adapter: Its configuration and tensors.
        injection: Says where it acts.
        entering: The objects to attach to the model.
    """

    name: str
    adapter: Adapter
    injection: Callable[[], Injection]
    entering: DetachedAdapter


class Trial:
    """A copy of a model's modules over the same weights, which no request uses.

    Adapters are built for it, in any thread, while the model itself runs and changes. What comes
    out has been compared with the base tensor by tensor, and has its dtype and its device.
    """

    def __init__(self, model: nn.Module, factor_dtype: torch.dtype | None):
        """Copy the modules of a model.

        Args:
            model: A transformers model in evaluation mode, which does not run now.
            factor_dtype: dtype of factors and trained heads; None as in `add_adapter`.
        """
        self._model = copy_over_same_weights(model)
        self._builder = AdapterBuilder(self._model, factor_dtype)

    def pass_through(self, name: str, carried_name: str, adapter: Adapter) -> Candidate:
        """Return an adapter ready to be attached to the model.

        Args:
            name: Its name for messages.
            carried_name: Its name in the model.
            adapter: Its configuration and tensors.

        Raises:
            AdapterMismatchError: It was made for another base.
            LorakitError: It cannot be added for another reason.
        """
        try:
            entering, injection = self._builder.build(adapter, carried_name)
        except AdapterMismatchError as error:
            raise self._name_adapter(error, name, adapter) from None
        return Candidate(name, adapter, injection, entering)

    def _name_adapter(
        self, error: LorakitError, name: str, adapter: Adapter
    ) -> AdapterMismatchError:
        """Return the error with the adapter's name, and with a next step that a server has."""
        fitting = in_names_of(self._model, adapter)
        needed, there = rows_needed(self._model, dict(base_modules(self._model)), fitting)
        if needed > there:
            return AdapterMismatchError(
                f"Cannot serve adapter {name!r} on this base: it was trained with a vocabulary of "
                f"{needed} tokens, expected at most the {there} of the base. More tokens would "
                "change the answers of the base and of all other adapters. Merge it, and serve "
                "the merged model."
            )
        return AdapterMismatchError(f"Cannot serve adapter {name!r} on this base. {error}")

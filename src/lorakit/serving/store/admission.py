"""Adapters are tried on a copy of the model, enter it if they fit and act, and leave it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorakit.adapters import Adapter
from lorakit.adapters.older_names import in_names_of
from lorakit.errors import AdapterMismatchError, LorakitError
from lorakit.injection import Injection
from lorakit.injection.activation import remove_adapters
from lorakit.injection.detached import AdapterBuilder, DetachedAdapter, attach_adapter
from lorakit.injection.new_parts import trained_dtype
from lorakit.injection.selection.vocabulary import rows_needed
from lorakit.injection.state import base_modules, take_over_quantized
from lorakit.models.same_weights import copy_over_same_weights
from lorakit.serving.engine.visits import VisitOutput
from lorakit.serving.store.probe import Probe
from lorakit.serving.store.values import StoreSettings

Visit = Callable[[str, int, Callable[[], None]], Future[VisitOutput]]
"""Lets an adapter take part in one step of a running engine, as `Engine.visit` does."""


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


class Admission:
    """Attaches adapters, probes them and takes them out, in the thread that owns the model.

    Beside running answers, the probe is a few rows of their next step. What this leaves in doubt,
    and whatever enters a model without an engine, gets a forward pass between two steps. Nobody can
    lease the adapter meanwhile, and one that is refused is taken out before the next step.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: StoreSettings,
        run_between_steps: Callable[[Callable[[], Any]], Future[Any]],
        visit: Visit | None = None,
    ):
        """Take the arguments of `AdapterStore`."""
        base = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self._model = model
        self._element_bytes = (settings.factor_dtype or trained_dtype(base)).itemsize
        self._probe = Probe(model, allow_noop=settings.allow_noop)
        self._run_between_steps = run_between_steps
        self._visit = visit

    def bytes_of(self, elements: int) -> int:
        """Return the memory that an adapter with so many elements takes in the model."""
        return elements * self._element_bytes

    def remove(self, names: Sequence[str]) -> Future[None]:
        """Take adapters out of the model.

        Raises:
            RuntimeError: The thread that owns it has ended.
        """
        return self._run_between_steps(lambda: self._remove(names))

    def admit(self, candidate: Candidate) -> Future[None]:
        """Let an adapter in. If the future has an error, the model does not carry it.

        The future can be cancelled: then nobody waits for it any more.

        The future raises:
            AdapterFileError: The adapter does nothing, gives NaN or infinities, or cannot run in a
                batch beside others.
            LorakitError: It cannot be attached, or the engine is stopping.
        """
        admitted: Future[None] = Future()
        if self._visit is None:
            self._ask(admitted, lambda: self._enter_and_check(candidate))
            return admitted
        token = self._probe.token_for(candidate.adapter)

        has_entered = threading.Event()

        def enter() -> None:
            attach_adapter(self._model, candidate.entering)
            has_entered.set()

        def end_visit(visit: Future[VisitOutput]) -> None:
            error = _error_of(visit)
            if not has_entered.is_set():
                _resolve(admitted, error)
                return
            is_passed = False
            try:
                is_passed = error is None and self._probe.is_passed(visit.result())
            finally:  # whatever happens here, somebody waits for an end
                if is_passed:
                    _resolve(admitted, None)
                else:
                    self._ask(admitted, lambda: self._check(candidate))

        self._visit(candidate.entering.name, token, enter).add_done_callback(end_visit)
        return admitted

    def _ask(self, admitted: Future[None], function: Callable[[], None]) -> None:
        try:
            turn = self._run_between_steps(function)
        except Exception as error:  # the thread has ended
            _resolve(admitted, error)
            return
        turn.add_done_callback(lambda turn: _resolve(admitted, _error_of(turn)))

    # ---- in the thread that owns the model ----

    def _enter_and_check(self, candidate: Candidate) -> None:
        attach_adapter(self._model, candidate.entering)
        self._check(candidate)

    def _check(self, candidate: Candidate) -> None:
        name = candidate.entering.name
        try:
            self._probe.check(candidate.name, name, candidate.adapter, candidate.injection)
        except BaseException:
            self._remove([name])
            raise

    def _remove(self, names: Sequence[str]) -> None:
        remove_adapters(self._model, names)
        self.keep_base_alike()

    def keep_base_alike(self) -> None:
        """Let the base compute alike with adapters and without any.

        The outputs of a quantized base would otherwise change when the first adapter enters.
        """
        take_over_quantized(self._model)


def _error_of(done: Future[Any]) -> BaseException | None:
    return CancelledError() if done.cancelled() else done.exception()


def _resolve(admitted: Future[None], error: BaseException | None) -> None:
    if not admitted.set_running_or_notify_cancel():
        return
    if error is None:
        admitted.set_result(None)
    else:
        admitted.set_exception(error)

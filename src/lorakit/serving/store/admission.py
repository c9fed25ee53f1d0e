"""Adapters enter the model, stay only if they act and give finite numbers, and leave it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import torch
from torch import nn

from lorakit.injection.activation import remove_adapters
from lorakit.injection.detached import attach_adapter
from lorakit.injection.new_parts import trained_dtype
from lorakit.injection.state import take_over_quantized
from lorakit.serving.store.probe import Outputs, Probe
from lorakit.serving.store.trial import Candidate
from lorakit.serving.store.values import StoreSettings

Visit = Callable[[str, int, Callable[[], None]], Future[Any]]
"""Lets an adapter take part in one step of a running engine, as `Engine.visit` does."""


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

        def end_visit(visit: Future[Outputs]) -> None:
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

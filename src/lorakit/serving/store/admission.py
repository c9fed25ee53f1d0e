"""Letting an adapter into the model: it stays only if it acts and gives finite numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from lorakit.serving.store.placing import Placing
from lorakit.serving.store.probe import Outputs, Probe
from lorakit.serving.store.trial import Candidate

Visit = Callable[[str, int, Callable[[], None]], Future[Any]]
"""Lets an adapter take part in one step of a running engine, as `Engine.visit` does."""


class Admission:
    """Attaches adapters and probes them, in the thread that owns the model.

    Beside running answers, the probe is a few rows of their next step. What this leaves in doubt,
    and whatever enters a model without an engine, gets a forward pass between two steps. Nobody can
    lease the adapter meanwhile, and one that is refused is taken out before the next step.
    """

    def __init__(
        self,
        placing: Placing,
        probe: Probe,
        run_between_steps: Callable[[Callable[[], Any]], Future[Any]],
        visit: Visit | None = None,
    ):
        """Share the parts of a store.

        Args:
            placing: Exchanges adapters of the model.
            probe: Probes them.
            run_between_steps: As in `AdapterStore`.
            visit: As in `AdapterStore`.
        """
        self._placing = placing
        self._probe = probe
        self._run_between_steps = run_between_steps
        self._visit = visit

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
            self._placing.enter(candidate.entering)
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
        self._placing.enter(candidate.entering)
        self._check(candidate)

    def _check(self, candidate: Candidate) -> None:
        name = candidate.entering.name
        try:
            self._probe.check(candidate.name, name, candidate.adapter, candidate.injection)
        except BaseException:
            self._placing.remove([name])
            raise


def _error_of(done: Future[Any]) -> BaseException | None:
    return CancelledError() if done.cancelled() else done.exception()


def _resolve(admitted: Future[None], error: BaseException | None) -> None:
    if not admitted.set_running_or_notify_cancel():
        return
    if error is None:
        admitted.set_result(None)
    else:
        admitted.set_exception(error)

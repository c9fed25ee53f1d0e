"""The engine: one thread that owns a model and answers requests step by step."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from itertools import count
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorakit.errors import ConfigError, EngineStoppedError, QueueFullError, first_line
from lorakit.injection.state import require_adapter
from lorakit.models.pretrained import model_limit
from lorakit.ops.native import openmp
from lorakit.serving.engine.request import Answer, RequestHandle
from lorakit.serving.engine.runner import short_turns
from lorakit.serving.engine.settings import EngineHooks, EngineSettings, EngineStats
from lorakit.serving.engine.steps import Steps
from lorakit.serving.engine.visits import Visit, VisitOutput
from lorakit.serving.requests import Deliver, GenerationRequest

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Engine:
    """Answers requests together, each as if it were alone.

    One thread runs the model. Between two of its steps, requests join and leave the batch, and
    functions that change the model run. All methods may be called from any thread.

    Attributes:
        failure: What ended the engine's thread against its will; None while all is well.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: EngineSettings | None = None,
        hooks: EngineHooks | None = None,
    ):
        """Create an engine that is not started yet.

        Args:
            model: A model that continues prompts, in eval mode, with or without adapters.
            tokenizer: Decodes the answers of requests that bring no tokenizer.
            settings: Limits.
            hooks: Functions for metrics.

        Raises:
            ConfigError: The model cannot be decoded row by row, or the memory for keys and values
                holds no prompt with an answer.
        """
        self.settings = settings or EngineSettings()
        self.failure: BaseException | None = None
        self._model = model
        # Requests come in other threads, in which the modules of a model that takes in adapters
        # cannot be listed.
        self._most_positions = model_limit(model)
        self._vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]  # models of texts have embeddings
        self._tokenizer = tokenizer
        self._hooks = hooks or EngineHooks()
        self._steps = Steps(model, self.settings, self._hooks)
        self._require_memory()
        self._changed = threading.Condition()
        self._numbers = count()
        self._arrived: deque[Answer] = deque()
        self._commands: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._is_cancelling = False
        self._is_stopping = False
        self._finish_until: float | None = None
        self._thread = threading.Thread(target=self._run, name="lorakit-engine", daemon=True)

    # ---- life ----

    def start(self) -> None:
        """Start the thread; the one that calls this has loaded the model and waits from now on."""
        openmp.end_waiting_threads()
        self._thread.start()

    def stop(self, *, finish_running: bool = True, timeout_s: float | None = None) -> None:
        """Refuse new requests, and wait until the thread has ended.

        Args:
            finish_running: Whether requests that were accepted are answered first; the others
                fail with an EngineStoppedError.
            timeout_s: Seconds after which those that still run fail as well; None for no limit.
        """
        with self._changed:
            self._is_stopping = True
            if not finish_running:
                self._finish_until = time.monotonic()
            elif timeout_s is not None:
                self._finish_until = time.monotonic() + timeout_s
            self._changed.notify()
        if self._thread.ident is None:
            self._end()
        else:
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the engine answers requests."""
        return self._thread.is_alive() and not self._is_stopping

    @property
    def most_tokens(self) -> int:
        """Tokens that a prompt and its answer can have together."""
        return min(filter(None, (self._steps.cache.most_tokens, self._most_positions)))

    @property
    def stats(self) -> EngineStats:
        """State of this moment."""
        return self._steps.stats(len(self._arrived))

    # ---- requests ----

    def submit(self, request: GenerationRequest, deliver: Deliver) -> RequestHandle:
        """Accept a request, whose events are delivered in the engine's thread.

        Raises:
            ConfigError: It can never be answered: too long, or an unknown token.
            AdapterNameError: The model has no such adapter.
            QueueFullError: Too many requests wait.
            EngineStoppedError: The engine is stopping, or has failed.
        """
        self._check(request)
        tokenizer = request.tokenizer or self._tokenizer
        answer = Answer(request, deliver, next(self._numbers), tokenizer, self._hooks)
        with self._changed:
            self.require_place()
            self._arrived.append(answer)
            self._changed.notify()
        return answer.handle

    def require_place(self) -> None:
        """Refuse early what `submit` would refuse now: preparing a request costs time too.

        Raises:
            QueueFullError: Too many requests wait.
            EngineStoppedError: The engine is stopping, or has failed.
        """
        if self._is_stopping or self.failure is not None:
            raise self._stop_error()
        waiting = self._steps.waiting + len(self._arrived)
        if waiting >= self.settings.max_waiting:
            raise QueueFullError(
                f"The request cannot wait: got {waiting} requests in the queue, expected fewer "
                f"than {self.settings.max_waiting}. Try again later."
            )

    def cancel(self, handle: RequestHandle) -> None:
        """End a request before the next step; it is told `Finished("cancelled")`."""
        with self._changed:
            handle.is_cancelled = True
            self._is_cancelling = True
            self._changed.notify()

    # ---- the model ----

    def between_steps(self, function: Callable[[], T]) -> Future[T]:
        """Run a function in the engine's thread while no row has an adapter.

        It may add, remove or change adapters. Before `start` it waits for it. What it raises, the
        future has.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._is_stopping or self.failure is not None:
                future.set_exception(self._stop_error())
            else:
                self._commands.append((future, function))
                self._changed.notify()
        return future

    def visit(self, adapter: str, token: int, enter: Callable[[], None]) -> Future[VisitOutput]:
        """Let an adapter take part in one step, in rows that belong to no request.

        Args:
            adapter: Its name in the model.
            token: What its row reads, and those of the base beside it.
            enter: Puts it into the model, as `between_steps` would run it.

        The future raises what `enter` raises or the model raises for these rows, which then
        concerns no request, and
            EngineStoppedError: The engine is stopping, or has failed.
        """
        visit = Visit(adapter, token)

        def begin() -> None:
            enter()
            self._steps.visits.append(visit)

        def pass_on(begun: Future[None]) -> None:
            error = begun.exception()
            if error is not None:
                visit.fail(error)

        self.between_steps(begin).add_done_callback(pass_on)
        return visit.result

    # ---- the thread ----

    def _run(self) -> None:
        try:
            with torch.no_grad(), short_turns():
                while self._prepare_step():
                    self._steps.step()
        except BaseException as error:
            _log.exception("The engine failed and has ended.")
            self.failure = error
        finally:
            self._end()

    def _prepare_step(self) -> bool:
        """Take in what has come since the last step; wait if there is nothing to do.

        Returns: Whether a step shall follow.
        """
        with self._changed:
            while not (self._has_news() or self._steps.has_work):
                if self._is_stopping:
                    return False
                openmp.end_waiting_threads()
                self._changed.wait()
            if self._finish_until is not None and time.monotonic() >= self._finish_until:
                return False
            while self._arrived:
                self._steps.add(self._arrived.popleft())
            commands, self._commands = self._commands, deque()
            is_cancelling, self._is_cancelling = self._is_cancelling, False
        if is_cancelling:
            self._steps.drop_cancelled()
        if commands:
            self._steps.runner.close()
        for future, function in commands:
            _resolve(future, function)
        return True

    def _has_news(self) -> bool:
        return bool(self._arrived or self._commands or self._is_cancelling)

    def _end(self) -> None:
        """Tell all that still wait that nothing follows."""
        with self._changed:
            self._is_stopping = True
            while self._arrived:
                self._steps.add(self._arrived.popleft())
            commands, self._commands = self._commands, deque()
        self._steps.runner.close()
        self._steps.fail_all(self._unfinished_error())
        for future, _ in commands:
            if future.set_running_or_notify_cancel():
                future.set_exception(self._stop_error())

    def _unfinished_error(self) -> EngineStoppedError:
        if self.failure is not None:
            return self._stop_error()
        return EngineStoppedError(
            "The answer is not finished: the server is stopping, and its time for finishing "
            "requests is over. Send the request to another one."
        )

    def _stop_error(self) -> EngineStoppedError:
        if self.failure is None:
            return EngineStoppedError(
                "The server takes no requests: it is stopping. Send them to another one."
            )
        error = EngineStoppedError(
            f"The server takes no requests: its engine failed with {type(self.failure).__name__}: "
            f"{first_line(self.failure)}. Restart it; its log has the traceback."
        )
        error.__cause__ = self.failure
        return error

    def _require_memory(self) -> None:
        cache = self._steps.cache
        if cache.most_tokens < 2:
            raise ConfigError(
                f"The memory for keys and values is too small: got {self.settings.kv_bytes:,} "
                f"bytes, expected at least {2 * cache.column_bytes:,}, those of two tokens. Give "
                "more (--kv-memory)."
            )

    def _check(self, request: GenerationRequest) -> None:
        prompt, new = len(request.prompt), request.sampling.max_tokens
        if not prompt or new < 1:
            raise ConfigError(
                f"The request cannot be answered: got {prompt} tokens of a prompt and max_tokens "
                f"{new}, expected at least one of each."
            )
        most, what = self._steps.cache.most_tokens, "the memory for keys and values"
        limit = self._most_positions
        if limit is not None and limit <= most:
            most, what = limit, f"the positions of this {type(self._model).__name__}"
        if prompt + new > most:
            raise ConfigError(
                f"The request is too long: got {prompt} tokens and {new} new ones, expected at "
                f"most {most} together, {what}. Shorten the prompt or ask for fewer tokens."
            )
        for what, tokens in (
            ("The prompt", request.prompt),
            ("logit_bias", request.sampling.logit_bias),
        ):
            wrong = [token for token in tokens if not 0 <= token < self._vocabulary]
            if wrong:
                raise ConfigError(
                    f"{what} has an unknown token: got {wrong[0]}, expected 0 to "
                    f"{self._vocabulary - 1}. Use the tokenizer of this model."
                )
        if request.adapter is not None:
            require_adapter(self._model, request.adapter)


def _resolve(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)

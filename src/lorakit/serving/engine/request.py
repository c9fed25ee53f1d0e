"""One request inside the engine: what it has answered so far, and how it is told."""

from __future__ import annotations

import logging
import time
from collections import Counter

import torch
from transformers import PreTrainedTokenizerBase

from lorakit.errors import GenerationError
from lorakit.serving.engine.settings import EngineHooks
from lorakit.serving.engine.text_stream import TextStream
from lorakit.serving.requests import (
    Deliver,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerationRequest,
    NewText,
    TokenLogprob,
)

_log = logging.getLogger(__name__)
_DRAWN_AT_ONCE = 64


class RequestHandle:
    """A submitted request, by which it can be cancelled.

    Attributes:
        is_cancelled: Whether it was asked to end early.
        is_over: Whether its last event has been delivered.
    """

    def __init__(self) -> None:
        self.is_cancelled = False
        self.is_over = False


class Answer:
    """A request with its answer so far; it survives losing its place in the batch.

    Attributes:
        request: What is asked.
        handle: What the caller has of it.
        number: Place in the order of arrival.
        tokens: The prompt and the tokens of the answer.
        counts: How often the answer holds each token.
        cached_tokens: Tokens of the prompt that the prefix cache had; None before it was read.
        failures: Times that a step failed in which it took part.
        has_failed: Whether it ended without an answer.
    """

    def __init__(
        self,
        request: GenerationRequest,
        deliver: Deliver,
        number: int,
        tokenizer: PreTrainedTokenizerBase,
        hooks: EngineHooks,
    ):
        self.request = request
        self.handle = RequestHandle()
        self.number = number
        self.tokens = list(request.prompt)
        self.counts: Counter[int] = Counter()
        self.cached_tokens: int | None = None
        self.failures = 0
        self.has_failed = False
        self._deliver = deliver
        self._text = TextStream(tokenizer, request.prompt, request.sampling.stop)
        self._hooks = hooks
        self._last_s = time.perf_counter()
        self._generator = torch.Generator().manual_seed(request.sampling.seed)
        self._drawn: list[float] = []

    @property
    def answered(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def adapter_text(self) -> str:
        """Name of the adapter, for messages."""
        name = self.request.adapter
        return "the base" if name is None else f"adapter {name!r}"

    def draw(self) -> float:
        """Return this request's next random number, in [0, 1), whatever runs beside it."""
        if not self._drawn:
            numbers = torch.rand(_DRAWN_AT_ONCE, generator=self._generator, dtype=torch.float64)
            self._drawn = numbers.tolist()
        return self._drawn.pop()

    def add(self, token: int, logprob: TokenLogprob | None) -> None:
        """Take the next token, and end where the request says so."""
        sampling = self.request.sampling
        if token in sampling.stop_token_ids:
            self.finish("stop")
            return
        grammar = self.request.grammar
        if grammar is not None and not grammar.consume_token(token):
            self.fail(GenerationError(f"The grammar refused a token: {grammar.get_error()}"))
            return
        self.tokens.append(token)
        self.counts[token] += 1
        self._time_token()
        text = self._text.add(token)
        self._send(NewText((token,), text, () if logprob is None else (logprob,)))
        if self._text.is_stopped or (grammar is not None and grammar.is_stopped()):
            self.finish("stop")
        elif self.answered >= sampling.max_tokens:
            self.finish("length")
        elif self.handle.is_cancelled:
            self.finish("cancelled")

    def finish(self, reason: FinishReason) -> None:
        """End the answer."""
        if self.handle.is_over:
            return
        rest = "" if reason == "cancelled" else self._text.end()
        if rest:
            self._send(NewText((), rest))
        prompt = len(self.request.prompt)
        self._end(Finished(reason, prompt, self.cached_tokens or 0, self.answered))

    def fail(self, error: Exception) -> None:
        """End the request without an answer."""
        self.has_failed = not self.handle.is_over
        self._end(Failed(error))

    def _end(self, event: Event) -> None:
        if not self.handle.is_over:
            self.handle.is_over = True
            self._send(event)

    def _send(self, event: Event) -> None:
        try:
            self._deliver(event)
        except Exception:
            # Whoever asked can no longer be told; the others' answers go on.
            _log.exception("Delivering an answer failed; the request is cancelled.")
            self.handle.is_cancelled = True

    def _time_token(self) -> None:
        now = time.perf_counter()
        tell = self._hooks.first_token if self.answered == 1 else self._hooks.next_token
        tell(now - self._last_s)
        self._last_s = now

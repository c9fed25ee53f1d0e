"""One step of an engine: read a piece of a prompt, then decode a token of each running answer."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lorakit.errors import GenerationError, first_line
from lorakit.serving.engine.batch_cache import BatchCache, KeysValues
from lorakit.serving.engine.prefix_cache import PrefixCache
from lorakit.serving.engine.request import Answer
from lorakit.serving.engine.runner import ModelRunner, cache_of, keys_values
from lorakit.serving.engine.sampling import Sampler
from lorakit.serving.engine.scheduler import Scheduler
from lorakit.serving.engine.settings import EngineHooks, EngineSettings, EngineStats
from lorakit.serving.engine.visits import VISITING_ROWS, Visit

_log = logging.getLogger(__name__)


class Steps:
    """What an engine does between two moments at which requests may come and go.

    Only the engine's thread calls it.
    """

    def __init__(self, model: PreTrainedModel, settings: EngineSettings, hooks: EngineHooks):
        self.runner = ModelRunner(model)
        like = self.runner.one_token()
        self.cache = BatchCache(like, settings.kv_bytes, settings.max_batch_rows, VISITING_ROWS)
        self.visits: deque[Visit] = deque()
        self._first_token = like
        self.prefixes = PrefixCache(like, settings.prefix_cache_bytes)
        if settings.prefix_cache_bytes and not self.prefixes.is_possible:
            _log.warning(
                "Prompts share no beginnings: the layers of %s keep keys and values of different "
                "shapes.",
                type(model).__name__,
            )
        self._scheduler = Scheduler(settings.prefill_chunk_tokens)
        self._chunk_tokens = settings.prefill_chunk_tokens
        self._hooks = hooks
        self._reading: _Reading | None = None
        self._sampler: Sampler | None = None
        self._counted = dict.fromkeys(
            ("steps", "decoded_tokens", "prompt_tokens", "cached_tokens", "preemptions"), 0
        )

    # ---- requests that come and go ----

    @property
    def waiting(self) -> int:
        """Requests without a place."""
        return len(self._scheduler.waiting)

    @property
    def running(self) -> int:
        """Requests that are read or decoded."""
        reading = self._reading
        return len(self._scheduler.running) + (len(reading.answers) if reading else 0)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._scheduler.waiting or self.running or self.visits)

    def stats(self, arrived: int = 0) -> EngineStats:
        """Return the state of this moment; any thread may ask.

        Args:
            arrived: Requests that wait besides.
        """
        return EngineStats(
            waiting=self.waiting + arrived,
            running=self.running,
            kv_bytes=self.cache.allocated_bytes,
            prefix_cache_bytes=self.prefixes.used_bytes,
            **self._counted,
        )

    def add(self, answer: Answer) -> None:
        """Let a request wait for its turn."""
        self._scheduler.waiting.append(answer)

    def _answers(self) -> list[Answer]:
        reading = self._reading.answers if self._reading else []
        return [*self._scheduler.waiting, *reading, *self._scheduler.running]

    def drop_cancelled(self) -> None:
        """End the answers that were cancelled."""
        for answer in self._answers():
            if answer.handle.is_cancelled:
                answer.finish("cancelled")
        self._drop_finished()

    def fail_all(self, error: Exception) -> None:
        """End all requests without an answer."""
        for answer in self._answers():
            answer.fail(error)
        self._drop_finished()
        while self.visits:
            self.visits.popleft().fail(error)

    # ---- a step ----

    def step(self) -> None:
        """Read at most one piece of prompts, and decode at most one token of each row."""
        if self._reading is None:
            self._reading = self._next_reading()
        if self._reading is not None:
            self._read(self._reading)
        visit = None
        if self._scheduler.running:
            visit = self._decode(may_be_visited=True)
        if visit is None and self.visits:
            self.visits.popleft().run_alone(self.runner, self._first_token)

    def _has_prefix(self, answer: Answer) -> bool:
        return self.prefixes.known_tokens(answer.request.cache_key, answer.tokens) > 0

    def _next_reading(self) -> _Reading | None:
        group = self._scheduler.admit(self.cache.fits, self._has_prefix)
        if not group:
            return None
        first: list[KeysValues | None] = []
        if len(group) == 1:
            first = self.prefixes.find(group[0].request.cache_key, group[0].tokens)
        known = next((pair[0].shape[2] for pair in first if pair is not None), 0)
        for answer in group:
            if answer.cached_tokens is None:
                answer.cached_tokens = known
                self._counted["prompt_tokens"] += len(answer.tokens)
                self._counted["cached_tokens"] += known
        return _Reading(group, cache_of(first), known, self.runner.device)

    def _read(self, reading: _Reading) -> None:
        try:
            logits = reading.next_piece(self.runner, self._chunk_tokens)
        except Exception as error:
            self._reading = None
            self._retry_alone(reading.answers, error)
            return
        if logits is None:
            return
        self._reading = None
        answers = reading.answers
        layers = [reading.row(row) for row in range(len(answers))]
        for answer, each in zip(answers, layers, strict=True):
            self.prefixes.store(answer.request.cache_key, answer.tokens, each)
        sampler = Sampler(answers, logits.device)
        self._take_tokens(answers, sampler, logits)
        for answer, each in zip(answers, layers, strict=True):
            if not answer.handle.is_over:
                self._join(answer, each)

    def _join(self, answer: Answer, layers: Sequence[KeysValues | None]) -> None:
        """Let an answer whose prompt has been read decode; the youngest gives way."""
        tokens = len(answer.tokens) - 1  # the last one has no keys and values yet
        running = self._scheduler.running
        while not self.cache.fits([tokens]):
            if not running or running[self._scheduler.youngest()].number < answer.number:
                self._counted["preemptions"] += 1
                self._scheduler.put_back(answer)
                return
            self._preempt_youngest()
        self.cache.join(layers, tokens)
        running.append(answer)
        self._sampler = None

    def _decode(self, *, may_be_visited: bool) -> Visit | None:
        """Decode a token of each running answer; return the visit that took part."""
        while not self.cache.has_room():
            self._preempt_youngest()
        visit = None
        if may_be_visited and self.visits and self.cache.can_be_visited():
            visit = self.visits.popleft()
        began = time.perf_counter()
        running = self._scheduler.running
        if self._sampler is None:
            self._sampler = Sampler(running, self.runner.device)
        rows = len(running)
        last = [[answer.tokens[-1]] for answer in running]
        names = [answer.request.adapter for answer in running]
        if visit is not None:
            last += [[visit.token]] * len(visit.names)
            names += visit.names
            for _ in visit.names:
                self.cache.join(self._first_token, 1)
        ids = torch.tensor(last, device=self.runner.device)
        mask, positions = self.cache.attention_mask(), self.cache.position_ids()
        try:
            logits = self.runner.forward(ids, self.cache, names, mask, positions)
        except Exception as error:
            if visit is not None:  # nothing was taken yet, so the others just begin again
                self.runner.close()
                self._say_goodbye(rows)
                visit.fail(error)
                self._decode(may_be_visited=False)
                return visit
            answers = list(running)
            self._leave_all()
            self._retry_alone(answers, error)
            return None
        self.cache.advance()
        if visit is not None:
            visit.finish(logits[rows:], self.cache.row(len(names) - 1))
            self._say_goodbye(rows)
        self._take_tokens(running, self._sampler, logits[:rows])
        self._drop_finished()
        self._counted["steps"] += 1
        self._counted["decoded_tokens"] += rows
        self._hooks.step(rows, time.perf_counter() - began)
        return visit

    def _say_goodbye(self, rows: int) -> None:
        """Take the rows of a visit, which follow those of the answers, out of the batch."""
        while len(self.cache.starts) > rows:
            self.cache.leave(len(self.cache.starts) - 1)

    def _take_tokens(self, answers: Sequence[Answer], sampler: Sampler, logits: Tensor) -> None:
        try:
            tokens, logprobs, failures = sampler.sample(logits)
        except Exception as error:
            # A second try would take other random numbers than the request alone.
            _log.exception("Choosing tokens of %d rows failed.", len(answers))
            for answer in answers:
                answer.fail(_step_failed(answer, error))
            return
        for answer, token, logprob, failure in zip(
            answers, tokens, logprobs, failures, strict=True
        ):
            if answer.handle.is_over:  # cancelled while its prompt was read
                continue
            if failure is None:
                answer.add(token, logprob)
            else:
                told = isinstance(failure, GenerationError)
                answer.fail(failure if told else _step_failed(answer, failure))

    # ---- answers that lose their place ----

    def _preempt_youngest(self) -> None:
        row = self._scheduler.youngest()
        self._counted["preemptions"] += 1
        self._scheduler.put_back(self._leave(row))

    def _drop_finished(self) -> None:
        scheduler = self._scheduler
        if any(answer.handle.is_over for answer in scheduler.waiting):
            kept = [answer for answer in scheduler.waiting if not answer.handle.is_over]
            scheduler.waiting.clear()
            scheduler.waiting.extend(kept)
        if self._reading and all(answer.handle.is_over for answer in self._reading.answers):
            self._reading = None
        for row in reversed(range(len(scheduler.running))):
            if scheduler.running[row].handle.is_over:
                self._leave(row)

    def _leave(self, row: int) -> Answer:
        """Take a row out; what it has read may serve later prompts, or itself."""
        answer = self._scheduler.running[row]
        layers = self.cache.row(row)
        tokens = next(pair[0].shape[2] for pair in layers if pair is not None)
        if not answer.has_failed:
            self.prefixes.store(answer.request.cache_key, answer.tokens[:tokens], layers)
        self.cache.leave(row)
        self._sampler = None
        return self._scheduler.leave(row)

    def _leave_all(self) -> None:
        for row in reversed(range(len(self._scheduler.running))):
            self.cache.leave(row)
            self._scheduler.leave(row)
        self._sampler = None

    def _retry_alone(self, answers: Sequence[Answer], error: Exception) -> None:
        """After a failure in common, find out whose it was: each is read alone, once."""
        _log.error("A step of %d rows failed.", len(answers), exc_info=error)
        self.runner.close()
        for answer in answers:
            answer.failures += 1
            if answer.handle.is_over:
                continue
            if len(answers) == 1 or answer.failures > 1:
                answer.fail(_step_failed(answer, error))
            else:
                self._scheduler.put_back(answer)


@dataclass
class _Reading:
    """Prompts that are read together, padded on the left, or a long one piece by piece."""

    answers: list[Answer]
    cache: DynamicCache
    done: int
    """Columns that have been read."""
    device: torch.device

    @cached_property
    def _ids(self) -> Tensor:
        columns = self.columns
        rows = [[0] * (columns - len(each.tokens)) + each.tokens for each in self.answers]
        return torch.tensor(rows, device=self.device)

    @cached_property
    def _mask(self) -> Tensor:
        padding = [[self.columns - len(each.tokens)] for each in self.answers]
        columns = torch.arange(self.columns, device=self.device)
        return (columns >= torch.tensor(padding, device=self.device)).long()

    @cached_property
    def columns(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(answer.tokens) for answer in self.answers)

    def next_piece(self, runner: ModelRunner, chunk_tokens: int) -> Tensor | None:
        """Read the next piece; return the logits of the last token if it was the last piece."""
        end = min(self.columns, self.done + max(1, chunk_tokens // len(self.answers)))
        names = [answer.request.adapter for answer in self.answers]
        positions = (self._mask.cumsum(-1) - 1).clamp_(min=0)
        piece = slice(self.done, end)
        logits = runner.forward(
            self._ids[:, piece], self.cache, names, self._mask[:, :end], positions[:, piece]
        )
        self.done = end
        return logits if end == self.columns else None

    def row(self, row: int) -> list[KeysValues | None]:
        """Return the keys and values of a row's tokens, (1, heads, tokens, width) by layer."""
        first = self.columns - int(self._mask[row].sum())
        return [
            None
            if pair is None
            else (pair[0][row : row + 1, :, first:], pair[1][row : row + 1, :, first:])
            for pair in keys_values(self.cache)
        ]


def _step_failed(answer: Answer, error: Exception) -> GenerationError:
    failed = GenerationError(
        f"The model failed at a request of {answer.adapter_text} with {len(answer.tokens)} "
        f"tokens: got {type(error).__name__}: {first_line(error)}. The server's log has the "
        "traceback."
    )
    failed.__cause__ = error
    return failed

"""Requests for an engine that arrive at random moments, and how long each took.

In an open loop requests arrive whether or not earlier ones are answered, as those of many users
do: the times between them are those of a Poisson process. In a closed loop a number of clients ask
one request after the other.
"""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

PROMPT_TOKENS = (12, 24, 40, 64, 96, 160)
NEW_TOKENS = (8, 16, 24, 32, 48, 64)


@dataclass(frozen=True)
class Work:
    """One request: its prompt, the number of new tokens, and its adapter or None."""

    prompt: tuple[int, ...]
    new_tokens: int
    adapter: str | None = None


@dataclass
class Answered:
    """When a request arrived, and when each of its tokens came, in seconds of one clock."""

    arrived_s: float
    token_s: list[float] = field(default_factory=list[float])
    tokens: list[int] = field(default_factory=list[int])
    ended_s: float = 0.0

    @property
    def first_token_s(self) -> float:
        """Seconds to the first token."""
        return self.token_s[0] - self.arrived_s

    @property
    def between_tokens_s(self) -> list[float]:
        """Seconds between each token and the next."""
        return [later - earlier for earlier, later in pairwise(self.token_s)]


@dataclass(frozen=True)
class Load:
    """What came of a number of requests.

    Attributes:
        answered: The requests, in the order of their arrival.
        began_s: When the first arrived.
    """

    answered: Sequence[Answered]
    began_s: float

    @property
    def seconds(self) -> float:
        """Seconds until the last one ended."""
        return max(one.ended_s for one in self.answered) - self.began_s

    @property
    def tokens_per_s(self) -> float:
        """New tokens in a second."""
        return sum(len(one.tokens) for one in self.answered) / self.seconds

    @property
    def steady_tokens_per_s(self) -> float:
        """New tokens in a second until the last request arrived; in a closed loop, at full load."""
        last_s = self.answered[-1].arrived_s
        tokens = sum(moment <= last_s for one in self.answered for moment in one.token_s)
        return tokens / (last_s - self.began_s)

    def without_first(self, count: int) -> "Load":
        """Return the load without the first requests, which a closed loop begins all at once."""
        return Load(self.answered[count:], self.began_s)

    @property
    def mean_in_flight(self) -> float:
        """Mean number of requests that have arrived and not ended."""
        return sum(one.ended_s - one.arrived_s for one in self.answered) / self.seconds

    def first_token_s(self, percent: float) -> float:
        """Return a percentile of the time to the first token."""
        return percentile([one.first_token_s for one in self.answered], percent)

    def between_tokens_s(self, percent: float) -> float:
        """Return a percentile of the time between two tokens of an answer."""
        return percentile([s for one in self.answered for s in one.between_tokens_s], percent)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that so many percent of all do not exceed; 0 for no values.

    >>> percentile([3.0, 1.0, 2.0, 4.0], 50), percentile([3.0, 1.0, 2.0, 4.0], 95)
    (2.0, 4.0)
    """
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(int(rank), 1) - 1] if ordered else 0.0


def mixed_work(
    vocabulary: int, count: int, adapters: Sequence[str | None] = (None,), seed: int = 1
) -> list[Work]:
    """Return requests with lengths of both lists, the adapters in turn."""
    draw = random.Random(seed)
    return [
        Work(
            tuple(draw.randrange(3, vocabulary) for _ in range(draw.choice(PROMPT_TOKENS))),
            draw.choice(NEW_TOKENS),
            adapters[number % len(adapters)],
        )
        for number in range(count)
    ]


def arrival_times_s(count: int, requests_per_s: float, seed: int = 1) -> list[float]:
    """Return seeded moments at which requests arrive, in seconds from the beginning.

    >>> times = arrival_times_s(1000, 10.0)
    >>> times == sorted(times), round(times[-1])
    (True, 104)
    """
    draw = random.Random(seed)
    times, now = [], 0.0
    for _ in range(count):
        now += draw.expovariate(requests_per_s)
        times.append(now)
    return times


def open_loop(engine: Any, work: Sequence[Work], requests_per_s: float, seed: int = 1) -> Load:
    """Let requests arrive at random moments; wait until all are answered.

    A request that is submitted late, as the machine was busy, counts from its moment.
    """
    began = time.perf_counter()
    calls = []
    for one, after_s in zip(work, arrival_times_s(len(work), requests_per_s, seed), strict=True):
        time.sleep(max(0.0, began + after_s - time.perf_counter()))
        calls.append(_Call(engine, one, began + after_s))
    return _load(calls, began)


def closed_loop(engine: Any, work: Sequence[Work], clients: int) -> Load:
    """Let clients ask one request after the other; wait until all are answered."""
    began = time.perf_counter()
    calls: list[_Call] = []
    waiting = iter(work)
    lock = threading.Lock()
    is_over = threading.Event()

    def ask_next() -> None:
        with lock:
            one = next(waiting, None)
            if one is None:
                is_over.set()
            else:
                calls.append(_Call(engine, one, time.perf_counter(), ask_next))

    for _ in range(clients):
        ask_next()
    is_over.wait()
    return _load(calls, began)


class _Call:
    """A request under way."""

    def __init__(
        self,
        engine: Any,
        work: Work,
        arrived_s: float,
        at_end: Callable[[], None] = lambda: None,
    ):
        from lorakit.serving.requests import GenerationRequest, Sampling

        self.answered = Answered(arrived_s)
        self.failure: Exception | None = None
        self.is_over = threading.Event()
        self._at_end = at_end
        sampling = Sampling(max_tokens=work.new_tokens, temperature=0.0)
        engine.submit(
            GenerationRequest(work.prompt, work.adapter, work.adapter or "", sampling), self._take
        )

    def _take(self, event: Any) -> None:
        from lorakit.serving.requests import Failed, NewText

        now = time.perf_counter()
        if isinstance(event, NewText):
            self.answered.token_s += [now] * len(event.token_ids)
            self.answered.tokens += event.token_ids
            return
        self.answered.ended_s = now
        self.failure = event.error if isinstance(event, Failed) else None
        self.is_over.set()
        self._at_end()


def _load(calls: Sequence[_Call], began_s: float) -> Load:
    for call in calls:
        call.is_over.wait()
        if call.failure is not None:
            raise call.failure
    return Load([call.answered for call in calls], began_s)

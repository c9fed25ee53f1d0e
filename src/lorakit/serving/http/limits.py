"""Bounds on what one request, one key and the whole server may use."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from starlette.requests import Request

from lorakit.errors import ConfigError
from lorakit.serving.http.keys import ANONYMOUS, Caller
from lorakit.serving.refusals import RequestError, overload_error


@dataclass(frozen=True)
class Limits:
    """What is refused before it costs anything.

    Attributes:
        body_bytes: Bytes of a request's body.
        body_s: Seconds within which the body must arrive.
        prompt_tokens: Tokens of a prompt; None allows the model's context.
        output_tokens: New tokens of an answer; None allows the model's context.
        choices: Answers of a request (`n`, times the prompts of a completion), at most `waiting`.
        inputs: Texts of a request for embeddings, classes, scores or completions, at most
            `waiting`.
        stop_texts: Stop texts of a request.
        stop_characters: Characters of a stop text.
        waiting: Requests that wait for the model; more get 429.
        requests_per_key: Requests of one key at the same time; there is no limit without keys.
        connections: Connections at the same time; more get 503.
    """

    body_bytes: int = 4 * 1024**2
    body_s: int = 30
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    choices: int = 16
    inputs: int = 256
    stop_texts: int = 16
    stop_characters: int = 256
    waiting: int = 1024
    requests_per_key: int = 64
    connections: int = 4096

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"The limit {field.name} cannot be used: got {value}, expected at least 1. "
                    "Set another."
                )
        # A request with more could never wait as a whole: it would be told for ever to try again.
        for name in ("choices", "inputs"):
            object.__setattr__(self, name, min(getattr(self, name), self.waiting))


async def read_body(request: Request, limits: Limits) -> bytes:
    """Return a request's body.

    Raises:
        RequestError: It is too large, or does not arrive in time.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.body_bytes:
        raise _too_large(int(announced), limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise _too_large(len(body), limits)
    except TimeoutError:
        raise RequestError(
            f"The body did not arrive in time: got {len(body)} bytes in {limits.body_s} s. Send "
            "it faster.",
            status=408,
            code="body_timeout",
        ) from None
    return bytes(body)


def _too_large(got: int, limits: Limits) -> RequestError:
    return RequestError(
        f"The body is too large: got {got:,} bytes or more, expected at most "
        f"{limits.body_bytes:,}. Send less at once.",
        status=413,
        code="body_too_large",
    )


class RequestsPerKey:
    """Counts the requests of each key that run at the same time."""

    def __init__(self, limit: int):
        self._limit = limit
        self._running: Counter[str] = Counter()

    @contextmanager
    def holding(self, caller: Caller) -> Iterator[None]:
        """Count a request inside the block.

        Raises:
            RequestError: The key has as many already as it may.
        """
        if caller.name == ANONYMOUS:
            yield
            return
        if self._running[caller.name] >= self._limit:
            raise overload_error(
                f"Too many requests at once with this key: got {self._limit + 1}, expected at "
                f"most {self._limit}. Wait for one of them to end."
            )
        self._running[caller.name] += 1
        try:
            yield
        finally:
            self._running[caller.name] -= 1
            if not self._running[caller.name]:
                del self._running[caller.name]

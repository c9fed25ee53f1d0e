"""Connections: those beyond the limit are told so and closed, silent ones end by themselves."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any, ClassVar
from weakref import WeakSet

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from lorakit.serving.http.errors import error_body
from lorakit.serving.refusals import RequestError

FIRST_REQUEST_S = 30.0
"""Time within which a connection must have sent the head of its first request."""

MOST_REFUSED = 1024
"""Refused connections that may first send their request, so that they surely read the answer."""

_REFUSED_S = 1.0
_RETRY_AFTER_S = 5

_Protocol: Any = AutoHTTPProtocol


class LimitedConnection(_Protocol):
    """One connection; uvicorn's `limit_concurrency` is the most of them.

    uvicorn itself accepts any number and then refuses requests, also those of clients that were
    there before. Here who is connected stays so, and those who come when all places are taken get
    503 without any work for their request.
    """

    _refused: ClassVar[WeakSet[LimitedConnection]] = WeakSet()

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self._most = self.limit_concurrency
        self.limit_concurrency = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take a place, or be refused."""
        if self._most is None or len(self.connections) < self._most:
            super().connection_made(transport)
            self._timer = self.loop.call_later(FIRST_REQUEST_S, self.transport.close)
            return
        self.transport = transport
        if len(self._refused) >= MOST_REFUSED:
            self._refuse()
            return
        self._refused.add(self)
        self._timer = self.loop.call_later(_REFUSED_S, self._refuse)

    def data_received(self, data: bytes) -> None:
        """Read a part of a request."""
        if self in self._refused:
            self._refuse()
            return
        super().data_received(data)
        if self.cycle is not None:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the place back."""
        self._stop_timer()
        self._refused.discard(self)
        super().connection_lost(exc)

    def _refuse(self) -> None:
        with suppress(RuntimeError):  # the other side has closed it
            self.transport.write(_refusal(self._most or 0))
        self.transport.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _refusal(most: int) -> bytes:
    error = RequestError(
        f"Too many connections: got more than {most}, expected at most that many at the same time. "
        "Ask again in a moment, or use fewer connections.",
        status=503,
        code="too_many_connections",
        retry_after_s=_RETRY_AFTER_S,
    )
    body = json.dumps(error_body(error)).encode()
    head = (
        "HTTP/1.1 503 Service Unavailable",
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"retry-after: {_RETRY_AFTER_S}",
        "connection: close",
    )
    return "\r\n".join([*head, "", ""]).encode() + body

"""One call: who asks, what becomes of it, and its line in the log."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from lorakit.serving.http.context import Context
from lorakit.serving.http.errors import as_request_error, error_body, error_response
from lorakit.serving.http.keys import Caller
from lorakit.serving.http.limits import read_body
from lorakit.serving.http.protocol.body import B, parse_body
from lorakit.serving.refusals import stopping

T = TypeVar("T")

CLIENT_GONE = 499
"""Status in the log of a request whose client went away, as nginx has it."""

_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@dataclass
class Call:
    """One request on its way.

    Attributes:
        request: The request.
        context: What all calls share.
        caller: Who asks.
        id: Its name in the log, and in the header X-Request-Id.
        model: The model that it uses, once that is known to exist.
        input_tokens: Tokens of its prompts.
        output_tokens: Tokens of its answers.
        noted: Further values for the log.
        at_end: What is done when the call is over, however it ends.
    """

    request: Request
    context: Context
    caller: Caller
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    model: str | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    noted: dict[str, Any] = field(default_factory=dict[str, Any])
    began_s: float = field(default_factory=time.perf_counter)
    body_is_read: asyncio.Event = field(default_factory=asyncio.Event)
    at_end: ExitStack = field(default_factory=ExitStack)

    async def body(self, kind: type[B]) -> B:
        """Return the parsed body.

        Raises:
            RequestError: It is too large, not JSON, or has a wrong field.
        """
        raw = await read_body(self.request, self.context.limits)
        self.body_is_read.set()
        parsed = parse_body(kind, raw)
        if user := getattr(parsed, "user", None):
            self.noted["user"] = user
        return parsed

    async def client_left(self) -> None:
        """Return when the client has closed the connection after its body was read."""
        await self.body_is_read.wait()
        while (await self.request.receive())["type"] != "http.disconnect":
            pass

    def note_prompt(self, text: Any) -> None:
        """Keep a prompt for the log, if it is to have them."""
        if self.context.log.with_prompts:
            self.noted["prompt"] = text

    def note_answer(self, text: str) -> None:
        """Keep an answer for the log, if it is to have them."""
        if self.context.log.with_prompts:
            self.noted.setdefault("answers", []).append(text)

    def note_first_token(self) -> None:
        """Keep the time of the first token for the log."""
        self.noted.setdefault("first_token_s", round(time.perf_counter() - self.began_s, 4))

    def end(self, status: int, error: str | None = None) -> None:
        """Count the call and write its line."""
        duration_s = time.perf_counter() - self.began_s
        path = self.request.scope["route"].path
        self.context.metrics.count(
            self.model, path, status, duration_s, self.input_tokens, self.output_tokens
        )
        client = self.request.client
        self.context.log.add(
            id=self.id,
            client=None if client is None else client.host,
            key=self.caller.name,
            method=self.request.method,
            path=path,
            status=status,
            model=self.model,
            input_tokens=self.input_tokens or None,
            output_tokens=self.output_tokens or None,
            duration_s=round(duration_s, 4),
            error=error,
            **self.noted,
        )


Handler = Callable[[Call], Awaitable[Any]]
"""Answers a call with a value for JSON, a Response, or the events of a stream."""


def answering(
    context: Context, handler: Handler, *, is_admin: bool = False, is_open: bool = False
) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """Return the route of a handler, with everything that calls have in common.

    Args:
        context: What all calls share.
        handler: Answers a call.
        is_admin: Whether only administrators may call it.
        is_open: Whether anybody may call it at any time, also while the server stops.
    """

    async def route(request: Request) -> Response:
        call = Call(request, context, Caller())
        with call.at_end as held:
            try:
                if not is_open:
                    call.caller = context.keys.caller(request.headers.get("authorization"))
                    if is_admin:
                        context.keys.require_admin(call.caller)
                    if context.is_stopping:
                        raise stopping()
                    held.enter_context(context.per_key.holding(call.caller))
                    held.enter_context(_counting(context))
                result = await _unless_client_leaves(call, handler(call))
            except ClientDisconnect:
                call.end(CLIENT_GONE)
                return Response(status_code=CLIENT_GONE)
            except Exception as error:
                refused = as_request_error(error)
                call.end(refused.status, str(refused))
                response = error_response(refused)
            else:
                if isinstance(result, AsyncGenerator):
                    call.at_end = held.pop_all()
                    return EventStream(call, result)
                is_ready = isinstance(result, Response)
                response = result if is_ready else JSONResponse(result)
                call.end(response.status_code)
            response.headers["x-request-id"] = call.id
            return response

    return route


@contextmanager
def _counting(context: Context) -> Iterator[None]:
    context.running += 1
    try:
        yield
    finally:
        context.running -= 1


async def _unless_client_leaves(call: Call, work: Awaitable[T]) -> T:
    """Return the result of work, which is cancelled as soon as the client goes away.

    Raises:
        ClientDisconnect: The client went away.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(call.client_left())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class EventStream(Response):
    """Server-sent events, ended as soon as the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, call: Call, events: AsyncGenerator[str]):
        """Stream events.

        Args:
            call: The call.
            events: The data of each event.
        """
        super().__init__(headers={"x-request-id": call.id, **_STREAM_HEADERS})
        del self.headers["content-length"]
        self._call, self._events = call, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        status, error = CLIENT_GONE, None
        try:
            with suppress(ClientDisconnect, OSError):
                error = await _unless_client_leaves(self._call, self._send_all(send))
                status = 200 if error is None else 500
        finally:
            await self._events.aclose()
            self._call.at_end.close()
            self._call.end(status, error)

    async def _send_all(self, send: Send) -> str | None:
        """Send everything; return the text of what went wrong, which the client is told too."""
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        failed = None
        try:
            async for data in self._events:
                await _send_event(send, data)
        except OSError:
            raise
        except Exception as error:
            refused = as_request_error(error)
            failed = str(refused)
            await _send_event(send, json.dumps(error_body(refused)))
        if failed is None:
            await _send_event(send, "[DONE]")
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return failed


async def _send_event(send: Send, data: str) -> None:
    body = f"data: {data}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})

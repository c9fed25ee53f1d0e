"""The process that takes requests from Ray's HTTP proxy and finds a replica for each.

It imports neither torch nor transformers.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from lorakit.serving.http.errors import as_request_error, error_body, error_response
from lorakit.serving.http.keys import ApiKeys
from lorakit.serving.http.limits import Limits, RequestsPerKey, read_body
from lorakit.serving.http.relay import CarriedRequest, Message
from lorakit.serving.refusals import RequestError, stopping

_log = logging.getLogger(__name__)

_TRIES = 3
_LOAD, _UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
_POLL_S = 0.05
_REPLICA_ENDED = (RayActorError, ActorUnavailableError, RayServeException)


@dataclass(frozen=True)
class Changes:
    """What administrators changed about the adapters since the start.

    Attributes:
        version: Number of changes.
        adapters: Path of each adapter that was loaded, None for those that were unloaded.
    """

    version: int = 0
    adapters: Mapping[str, str | None] = field(default_factory=dict[str, str | None])

    def with_change(self, name: str, path: str | None) -> Changes:
        """Return the changes with one more."""
        return Changes(self.version + 1, {**self.adapters, name: path})


@serve.ingress()
class Entrance:
    """Takes all requests, and hands each to a replica."""

    def __init__(self, keys: ApiKeys, limits: Limits, base_name: str, replicas: DeploymentHandle):
        """Take what replicas have too, and the way to them."""
        self._keys, self._limits, self._base_name = keys, limits, base_name
        self._per_key = RequestsPerKey(limits.requests_per_key)
        self._replicas = replicas
        self._changes: Changes | None = None
        self._changing = asyncio.Lock()
        self._is_stopping = False
        self._running = 0

    async def finish(self, within_s: float) -> int:
        """Refuse new requests, and wait for those that run; return how many were not finished."""
        self._is_stopping = True
        until = time.monotonic() + within_s
        while self._running and time.monotonic() < until:
            await asyncio.sleep(_POLL_S)
        return self._running

    def __serve_build_asgi_app__(self) -> Starlette:
        """Return the application that Ray's proxy calls."""
        return Starlette(routes=[Mount("/", app=self._answer)])

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with ExitStack() as held:
            try:
                if self._is_stopping and request.url.path != "/health":
                    raise stopping()
                held.enter_context(self._counting())
                response = await self._response(request, held)
            except Exception as error:
                response = error_response(as_request_error(error))
            await response(scope, receive, send)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        if self._running >= self._limits.connections:
            raise RequestError(
                f"Too many requests at once: got {self._running + 1}, expected at most "
                f"{self._running}. Wait for others to end.",
                status=503,
                code="too_many_requests",
                retry_after_s=1,
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _response(self, request: Request, held: ExitStack) -> Response:
        body, authorization = b"", request.headers.get("authorization")
        if request.method == "POST":
            held.enter_context(self._per_key.holding(self._keys.caller(authorization)))
            body = await read_body(request, self._limits)
        elif request.method == "GET" and request.url.path == "/metrics":
            self._keys.caller(authorization)
            return PlainTextResponse(merge_texts(dict(await self._ask_all("metrics"))))
        carried = CarriedRequest.of(request.scope, body)
        if request.method == "POST" and request.url.path in (_LOAD, _UNLOAD):
            return await self._change(carried, request.receive)
        return Relayed(self._replicas, carried, await self._known_changes(), self._base_name)

    async def _ask_all(self, method: str) -> list[Any]:
        """Return what the replicas that work answer.

        Raises:
            RequestError: None does.
        """
        try:
            answers = await self._replicas.broadcast(method).results_async(return_exceptions=True)
        except RayServeException:
            answers = []
        found = [one for one in answers if not isinstance(one, BaseException)]
        if not found:
            raise _replica_ended()
        return found

    async def _known_changes(self) -> Changes:
        """Return the changes so far, which an entrance that was started again asks replicas for."""
        if self._changes is not None:
            return self._changes
        latest: Changes = max(await self._ask_all("changes"), key=lambda one: one.version)
        self._changes = self._changes or latest
        return self._changes

    async def _change(self, request: CarriedRequest, receive: Receive) -> Response:
        """Have one replica make a change; the others follow before their next answer."""
        path = request.text("lora_path") if request.scope["path"] == _LOAD else None
        async with self._changing:
            changes = await self._known_changes()
            then = changes.with_change(request.text("lora_name"), path)
            relayed = Relayed(self._replicas, request, changes, self._base_name, then)
            sent: list[Message] = []

            async def keep(message: Message) -> None:
                sent.append(message)

            await relayed(request.scope, receive, keep)
            if sent[0]["status"] == 200:
                self._changes = then
        response = Response(b"".join(each.get("body", b"") for each in sent), sent[0]["status"])
        response.raw_headers = list(sent[0]["headers"])
        return response


class Relayed(Response):
    """The answer of a replica, asked for again elsewhere if the replica ends before it answers."""

    def __init__(
        self,
        replicas: DeploymentHandle,
        request: CarriedRequest,
        changes: Changes,
        base_name: str,
        then: Changes | None = None,
    ):
        """Take what `Replica.answer` needs; nothing is sent yet."""
        model = request.text("model")
        adapter = "" if model == base_name else model
        self._replicas = replicas.options(stream=True, multiplexed_model_id=adapter)
        self._arguments = (request, changes, then)
        self._start: Message | None = None
        self._is_begun = self._is_finished = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer, or why there is none.

        Ray cancels this call when the client goes away.
        """
        error: Exception | None = None
        for _ in range(_TRIES):
            answers: Any = self._replicas.answer.remote(*self._arguments)
            try:
                async for messages in answers:
                    for message in messages:
                        await self._send(send, message)
                return
            except RayTaskError as failed:
                _log.error("A replica could not answer.", exc_info=failed)
                error = failed
                break
            except _REPLICA_ENDED as failed:
                _log.warning("A replica ended while it answered: %s", failed)
                error = _replica_ended()
                if self._is_begun:
                    break
            finally:
                answers.cancel()
        if self._is_finished or error is None:
            return
        refused = as_request_error(error)
        if not self._is_begun:
            await error_response(refused)(scope, receive, send)
            return
        event = f"data: {json.dumps(error_body(refused))}\n\n".encode()
        await send({"type": "http.response.body", "body": event, "more_body": False})

    async def _send(self, send: Send, message: Message) -> None:
        """Send a message; the start of an answer waits for its first bytes.

        Until then another replica can answer instead.
        """
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start is not None and not self._is_begun:
            self._is_begun = True
            await send(self._start)
        self._is_finished = not message.get("more_body", False)
        await send(message)


def _replica_ended() -> RequestError:
    return RequestError(
        "The replica that answered has ended, and its answer is lost. Ask again; others answer.",
        status=503,
        code="replica_ended",
        retry_after_s=1,
    )


def merge_texts(texts: Mapping[str, bytes]) -> bytes:
    """Return the figures of several servers as one text, each with a label `replica`.

    Args:
        texts: What `Metrics.text` returned, by name of the server.
    """
    families: dict[str, Metric] = {}
    for server, text in texts.items():
        for family in text_string_to_metric_families(text.decode()):
            kept = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                kept.add_sample(sample.name, {"replica": server, **sample.labels}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Collected(list(families.values())))
    return generate_latest(registry)


class _Collected:
    """Figures that have been collected already."""

    def __init__(self, families: list[Metric]):
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

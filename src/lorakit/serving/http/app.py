"""The application: every path with its handler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from lorakit.recipes.numerics import package_version
from lorakit.serving.http.call import Handler, answering
from lorakit.serving.http.context import Context
from lorakit.serving.http.errors import error_response, of_http_exception
from lorakit.serving.http.protocol.administration import (
    DetokenizeBody,
    LoadBody,
    TokenizeBody,
    UnloadBody,
)
from lorakit.serving.http.protocol.body import Body
from lorakit.serving.http.protocol.chat import ChatBody
from lorakit.serving.http.protocol.completions import CompletionBody
from lorakit.serving.http.protocol.pooled import ClassifyBody, EmbeddingsBody, ScoreBody
from lorakit.serving.http.routes.chat import chat
from lorakit.serving.http.routes.completions import completions
from lorakit.serving.http.routes.health import health, metrics, ready
from lorakit.serving.http.routes.models import (
    list_models,
    load_adapter,
    show_model,
    unload_adapter,
)
from lorakit.serving.http.routes.texts import classify, embeddings, score
from lorakit.serving.http.routes.tokens import detokenize, tokenize

_POSTS: tuple[tuple[str, Handler, type[Body]], ...] = (
    ("/v1/chat/completions", chat, ChatBody),
    ("/v1/completions", completions, CompletionBody),
    ("/v1/embeddings", embeddings, EmbeddingsBody),
    ("/v1/classify", classify, ClassifyBody),
    ("/v1/score", score, ScoreBody),
    ("/classify", classify, ClassifyBody),
    ("/score", score, ScoreBody),
    ("/tokenize", tokenize, TokenizeBody),
    ("/detokenize", detokenize, DetokenizeBody),
)
_ADMINISTRATION: tuple[tuple[str, Handler, type[Body]], ...] = (
    ("/v1/load_lora_adapter", load_adapter, LoadBody),
    ("/v1/unload_lora_adapter", unload_adapter, UnloadBody),
)
_GETS: tuple[tuple[str, Handler], ...] = (
    ("/v1/models", list_models),
    ("/v1/models/{name:path}", show_model),
    ("/metrics", metrics),
)
_OPEN_GETS: tuple[tuple[str, Handler], ...] = (("/health", health), ("/ready", ready))


def build_app(context: Context) -> FastAPI:
    """Return the application of a service, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        context.service.start()
        try:
            yield
        finally:
            context.close()

    app = FastAPI(
        title="lorakit serve",
        version=package_version("lorakit") or "",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.context = context
    for path, handler, kind in _POSTS:
        _add(app, path, "POST", answering(context, handler), handler, kind)
    for path, handler, kind in _ADMINISTRATION:
        _add(app, path, "POST", answering(context, handler, is_admin=True), handler, kind)
    for path, handler in _GETS:
        _add(app, path, "GET", answering(context, handler), handler)
    for path, handler in _OPEN_GETS:
        _add(app, path, "GET", answering(context, handler, is_open=True), handler)

    app.add_exception_handler(HTTPException, _explain)
    return app


def build_calls(context: Context) -> Starlette:
    """Return OpenAI's calls on a service that somebody else starts, stops and administers.

    Unlike FastAPI, which caches its handlers for good, it keeps nothing when it is dropped.
    """
    calls = [("GET", path, handler) for path, handler in _GETS]
    calls += [("POST", path, handler) for path, handler, _ in _POSTS]
    routes = [
        Route(path, answering(context, handler), methods=[method])
        for method, path, handler in calls
        if path.startswith("/v1/")
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _explain})


async def _explain(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return error_response(of_http_exception(error, request))


def _add(
    app: FastAPI,
    path: str,
    method: str,
    route: Any,
    handler: Handler,
    kind: type[Body] | None = None,
) -> None:
    extra = None
    if kind is not None:
        schema = kind.model_json_schema()
        extra = {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
        }
    app.add_api_route(
        path,
        route,
        methods=[method],
        name=handler.__name__,
        summary=(handler.__doc__ or "").strip(),
        openapi_extra=extra,
        response_model=None,
    )

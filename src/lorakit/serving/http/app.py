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
from lorakit.serving.http.protocol.body import Body
from lorakit.serving.http.protocol.chat import ChatBody
from lorakit.serving.http.protocol.completions import CompletionBody
from lorakit.serving.http.protocol.other_calls import (
    ClassifyBody,
    DetokenizeBody,
    EmbeddingsBody,
    LoadBody,
    ScoreBody,
    TokenizeBody,
    UnloadBody,
)
from lorakit.serving.http.routes.chat import chat
from lorakit.serving.http.routes.completions import completions
from lorakit.serving.http.routes.state import (
    health,
    list_models,
    load_adapter,
    metrics,
    ready,
    show_model,
    unload_adapter,
)
from lorakit.serving.http.routes.texts import classify, embeddings, score
from lorakit.serving.http.routes.tokens import detokenize, tokenize

_Calls = tuple[tuple[str, Handler, type[Body] | None], ...]
"""Path, handler and body of some calls; those without a body are answered to GET."""

_CALLS: _Calls = (
    ("/v1/chat/completions", chat, ChatBody),
    ("/v1/completions", completions, CompletionBody),
    ("/v1/embeddings", embeddings, EmbeddingsBody),
    ("/v1/classify", classify, ClassifyBody),
    ("/v1/score", score, ScoreBody),
    ("/classify", classify, ClassifyBody),
    ("/score", score, ScoreBody),
    ("/tokenize", tokenize, TokenizeBody),
    ("/detokenize", detokenize, DetokenizeBody),
    ("/v1/models", list_models, None),
    ("/v1/models/{name:path}", show_model, None),
    ("/metrics", metrics, None),
)
_ADMINISTRATION: _Calls = (
    ("/v1/load_lora_adapter", load_adapter, LoadBody),
    ("/v1/unload_lora_adapter", unload_adapter, UnloadBody),
)
_OPEN: _Calls = (("/health", health, None), ("/ready", ready, None))


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
    groups: tuple[tuple[_Calls, dict[str, bool]], ...] = (
        (_CALLS, {}),
        (_ADMINISTRATION, {"is_admin": True}),
        (_OPEN, {"is_open": True}),
    )
    for calls, options in groups:
        for path, handler, kind in calls:
            _add(app, path, answering(context, handler, **options), handler, kind)
    app.add_exception_handler(HTTPException, _explain)
    return app


def build_calls(context: Context) -> Starlette:
    """Return OpenAI's calls on a service that somebody else starts, stops and administers.

    Unlike FastAPI, which caches its handlers for good, it keeps nothing when it is dropped.
    """
    routes = [
        Route(path, answering(context, handler), methods=[_method(kind)])
        for path, handler, kind in _CALLS
        if path.startswith("/v1/")
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _explain})


async def _explain(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return error_response(of_http_exception(error, request))


def _method(kind: type[Body] | None) -> str:
    return "GET" if kind is None else "POST"


def _add(app: FastAPI, path: str, route: Any, handler: Handler, kind: type[Body] | None) -> None:
    extra = None
    if kind is not None:
        schema = kind.model_json_schema()
        extra = {
            "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}
        }
    app.add_api_route(
        path,
        route,
        methods=[_method(kind)],
        name=handler.__name__,
        summary=(handler.__doc__ or "").strip(),
        openapi_extra=extra,
        response_model=None,
    )

"""GET /health, /ready, /metrics and /v1/models, and vLLM's calls that load and unload adapters."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, PlainTextResponse, Response

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.config import TaskType
from lorakit.errors import LorakitError
from lorakit.inference.loaded import companions_of
from lorakit.serving.base_models import ModelKind
from lorakit.serving.http.call import Call
from lorakit.serving.http.protocol.other_calls import LoadBody, UnloadBody
from lorakit.serving.store import KnownAdapter

_STARTED = int(time.time())


async def list_models(call: Call) -> dict[str, Any]:
    """Return the base and all adapters."""
    service = call.context.service
    adapters = [_adapter(call, known, kind) for known, kind in service.adapters()]
    return {"object": "list", "data": [_base(call), *adapters]}


async def show_model(call: Call) -> dict[str, Any]:
    """Return the base or one adapter."""
    name = call.request.path_params["name"]
    service = call.context.service
    if name == service.base_name:
        return _base(call)
    known, kind = service.find_adapter(name)
    return _adapter(call, known, kind) | _inputs(known)


def _inputs(known: KnownAdapter) -> dict[str, Any]:
    """Return what the adapter was trained on, which tells clients what to send."""
    try:
        settings = InferenceSettings.load(companions_of(known.path))
    except (LorakitError, OSError):  # the store tells what is wrong with it
        return {}
    return {"format": settings.format, "text_pair": settings.text_pair}


def _base(call: Call) -> dict[str, Any]:
    service = call.context.service
    limits = {model.kind.task: model.most_tokens for model in service.models}
    return {
        "id": service.base_name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "lorakit",
        "root": service.source.base.name,
        "parent": None,
        "tasks": [str(task) for task in limits],
        "max_model_len": limits.get(TaskType.CAUSAL_LM, next(iter(limits.values()))),
    }


def _adapter(call: Call, known: KnownAdapter, kind: ModelKind) -> dict[str, Any]:
    return {
        "id": known.name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "lorakit",
        "root": str(known.path),
        "parent": call.context.service.base_name,
        "task": str(kind.task),
        "rank": known.rank,
        "hash": known.content_hash,
        "bytes": known.bytes,
        "in_memory": known.in_memory,
        "pinned": known.pinned,
        "problem": known.problem,
    }


async def load_adapter(call: Call) -> PlainTextResponse:
    """Serve one more adapter."""
    body = await call.body(LoadBody)
    call.noted["adapter"] = body.lora_name
    await call.context.service.load_adapter(body.lora_name, body.lora_path)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


async def unload_adapter(call: Call) -> PlainTextResponse:
    """Stop serving an adapter."""
    body = await call.body(UnloadBody)
    call.noted["adapter"] = body.lora_name
    call.context.service.unload_adapter(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


async def health(call: Call) -> Response:
    """Tell whether the process works: it is to be restarted if not."""
    failures = [
        f"{type(failure).__name__}: {failure}"
        for model in call.context.service.models
        if model.engine is not None and (failure := model.engine.failure) is not None
    ]
    if failures:
        return JSONResponse({"status": "failed", "failures": failures}, 503)
    return JSONResponse({"status": "ok", "lost_log_lines": call.context.log.lost})


async def ready(call: Call) -> Response:
    """Tell whether requests are to be sent here now."""
    if call.context.is_stopping:
        return JSONResponse({"status": "stopping"}, 503, {"retry-after": "5"})
    return JSONResponse({"status": "ready"})


async def metrics(call: Call) -> Response:
    """Return figures for Prometheus."""
    return Response(call.context.metrics.text(), media_type=CONTENT_TYPE_LATEST)

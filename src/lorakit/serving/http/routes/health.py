"""GET /health, /ready and /metrics."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from lorakit.serving.http.call import Call


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

"""Errors as OpenAI's clients expect them: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from lorakit.errors import (
    AdapterFileError,
    AdapterMemoryError,
    AdapterMismatchError,
    AdapterNameError,
    ConfigError,
    DataError,
    EngineStoppedError,
    LorakitError,
    MissingFileError,
    QueueFullError,
    ShapeError,
    TargetError,
)
from lorakit.serving.refusals import RequestError

_STATUS: tuple[tuple[type[LorakitError], int, str], ...] = (
    (AdapterMismatchError, 422, "adapter_of_another_base"),
    (AdapterFileError, 422, "invalid_adapter"),
    (AdapterNameError, 404, "model_not_found"),
    (MissingFileError, 404, "not_found"),
    (TargetError, 422, "invalid_adapter"),
    (ConfigError, 400, "invalid_request"),
    (DataError, 400, "invalid_request"),
    (ShapeError, 400, "invalid_request"),
    (QueueFullError, 429, "rate_limit_exceeded"),
    (AdapterMemoryError, 503, "adapter_memory_full"),
    (EngineStoppedError, 503, "stopping"),
)
"""Status and code of errors that lorakit raises below the server, the first that fits."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}

UNEXPECTED = (
    "The server failed unexpectedly; its log has the reason. Ask again, and report it if it lasts."
)

_log = logging.getLogger(__name__)


def as_request_error(error: BaseException) -> RequestError:
    """Return an error with its status, parameter and code.

    Errors of other kinds become a 500 without their text, which is logged with its traceback.
    """
    if isinstance(error, RequestError):
        return error
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            retry_after_s = 1 if status in (429, 503) else None
            return RequestError(str(error), status=status, code=code, retry_after_s=retry_after_s)
    if isinstance(error, LorakitError):
        return RequestError(str(error), status=500, code="server_error")
    _log.error("A request failed unexpectedly.", exc_info=error)
    return RequestError(UNEXPECTED, status=500, code="server_error")


def error_body(error: RequestError) -> dict[str, Any]:
    """Return the JSON of an error."""
    kind = _TYPES.get(error.status)
    if kind is None:
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": str(error),
            "type": kind,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: RequestError) -> JSONResponse:
    """Return the response of an error, with Retry-After where it helps."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(error), error.status, headers)


def of_http_exception(error: HTTPException, request: Request) -> RequestError:
    """Return the error for a path or method that the server does not have."""
    path, code = request.url.path, "not_found"
    if error.status_code == 404:
        where = "that GET /openapi.json of `lorakit serve` lists"
        message = f"No such path: got {path}, expected one of those {where}."
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"Wrong method for {path}: got {request.method}, expected {allowed}."
        code = "method_not_allowed"
    else:
        message = str(error.detail)
    return RequestError(message, status=error.status_code, code=code)

"""What the server refuses, with what an HTTP client must know of it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from lorakit.errors import LorakitError, first_few


class RequestError(LorakitError, ValueError):
    """A request is wrong, or cannot be answered now."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        param: str | None = None,
        code: str = "invalid_parameter",
        retry_after_s: int | None = None,
    ):
        """Describe the problem.

        Args:
            message: The whole message.
            status: HTTP status.
            param: Parameter of the request that is wrong.
            code: A word for programs, such as "model_not_found".
            retry_after_s: Seconds after which the same request may succeed.
        """
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s


def unknown_model(name: str, known: Iterable[str]) -> RequestError:
    """Return the error for a model that does not exist, with the nearest names.

    >>> print(unknown_model("germen", ["german", "italian", "french"]))
    No model 'germen': expected one of the names of GET /v1/models. The nearest is german.
    >>> print(unknown_model("x", []))
    No model 'x': expected one of the names of GET /v1/models.
    """
    close = get_close_matches(name, list(known), n=3, cutoff=0.6)
    nearest = f" The nearest are {first_few(close)}." if len(close) > 1 else ""
    nearest = f" The nearest is {close[0]}." if len(close) == 1 else nearest
    return RequestError(
        f"No model '{name}': expected one of the names of GET /v1/models.{nearest}",
        status=404,
        param="model",
        code="model_not_found",
    )


def overload_error(message: str, retry_after_s: int = 1) -> RequestError:
    """Return the error for a request that must wait for others."""
    return RequestError(
        message, status=429, code="rate_limit_exceeded", retry_after_s=retry_after_s
    )


def stopping() -> RequestError:
    """Return the error for a request that arrives while the server stops."""
    return RequestError(
        "The server is stopping: it finishes the requests that run and takes no others. Ask again "
        "when it has started again.",
        status=503,
        code="stopping",
        retry_after_s=5,
    )

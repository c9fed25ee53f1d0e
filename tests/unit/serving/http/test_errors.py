import json
import logging

import pytest

from lorakit.errors import (
    AdapterFileError,
    AdapterMismatchError,
    AdapterNameError,
    ConfigError,
    DataError,
    EngineStoppedError,
    GenerationError,
    MissingFileError,
    QueueFullError,
)
from lorakit.serving.http.errors import UNEXPECTED, as_request_error, error_body, error_response
from lorakit.serving.refusals import RequestError


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (AdapterMismatchError("x"), 422, "invalid_request_error"),
        (AdapterFileError("x"), 422, "invalid_request_error"),
        (AdapterNameError("x"), 404, "not_found_error"),
        (MissingFileError("x"), 404, "not_found_error"),
        (ConfigError("x"), 400, "invalid_request_error"),
        (DataError("x"), 400, "invalid_request_error"),
        (QueueFullError("x"), 429, "rate_limit_error"),
        (EngineStoppedError("x"), 503, "server_error"),
        (GenerationError("x"), 500, "server_error"),
    ],
)
def test_errors_below_the_server_have_their_status(error, status, kind):
    found = as_request_error(error)
    assert (found.status, str(found)) == (status, "x")
    assert error_body(found)["error"]["type"] == kind


def test_an_unexpected_error_keeps_its_text_for_the_log(caplog):
    with caplog.at_level(logging.ERROR):
        found = as_request_error(ZeroDivisionError("a secret"))
    assert (found.status, str(found)) == (500, UNEXPECTED)
    assert "a secret" in caplog.text


def test_the_shape_is_openais():
    response = error_response(
        RequestError("Full.", status=429, param="n", code="busy", retry_after_s=2)
    )
    assert response.status_code == 429
    assert response.headers["retry-after"] == "2"
    assert json.loads(response.body) == {
        "error": {"message": "Full.", "type": "rate_limit_error", "param": "n", "code": "busy"}
    }
    assert error_response(RequestError("No.", status=401)).headers["www-authenticate"] == "Bearer"

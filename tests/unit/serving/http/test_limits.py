import asyncio

import pytest

from lorakit.errors import ConfigError
from lorakit.serving.http.keys import Caller
from lorakit.serving.http.limits import Limits, RequestsPerKey, read_body
from lorakit.serving.refusals import RequestError


class Request:
    """As much of starlette's request as is needed."""

    def __init__(self, chunks, headers=None, delay_s=0.0):
        self.headers = headers or {}
        self._chunks, self._delay_s = chunks, delay_s

    async def stream(self):
        for chunk in self._chunks:
            await asyncio.sleep(self._delay_s)
            yield chunk


def read(request, **limits):
    return asyncio.run(read_body(request, Limits(**limits)))


def test_a_body_is_read_whole():
    assert read(Request([b"ab", b"c"])) == b"abc"


@pytest.mark.parametrize(
    "request_",
    [Request([b"abcd"] * 3), Request([], {"content-length": "12"})],
    ids=["sent", "said"],
)
def test_a_body_that_is_too_large_is_refused_before_it_is_kept(request_):
    with pytest.raises(RequestError, match="expected at most 10") as caught:
        read(request_, body_bytes=10)
    assert caught.value.status == 413


def test_a_body_that_does_not_come_is_given_up():
    with pytest.raises(RequestError, match="did not arrive in time") as caught:
        read(Request([b"a"] * 3, delay_s=2), body_s=1)
    assert caught.value.status == 408


@pytest.mark.parametrize("field", ["body_bytes", "waiting", "output_tokens"])
def test_a_limit_of_nothing_is_refused(field):
    with pytest.raises(ConfigError, match=f"The limit {field} cannot be used: got -1"):
        Limits(**{field: -1})


def test_requests_of_one_key_are_counted_and_those_of_others_are_not():
    per_key, caller = RequestsPerKey(1), Caller("key-1")
    with per_key.holding(caller):
        with pytest.raises(RequestError, match="got 2, expected at most 1") as caught:
            per_key.holding(caller).__enter__()
        assert (caught.value.status, caught.value.retry_after_s) == (429, 1)
        with per_key.holding(Caller("key-2")), per_key.holding(Caller()), per_key.holding(Caller()):
            pass
    with per_key.holding(caller):
        pass

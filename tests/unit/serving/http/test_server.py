"""Starting and stopping: addresses, keys, limits, and requests that run at the end."""

import json
import socket
import threading
import time

import httpx2
import pytest

from lorakit.errors import ConfigError
from lorakit.serving import serve
from lorakit.serving.http.keys import ApiKeys
from lorakit.serving.http.limits import Limits
from lorakit.serving.http.server import Address

BODY = {"model": "german", "prompt": "sky", "max_tokens": 100, "ignore_eos": True}


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("x.y", False)],
)
def test_only_loopback_is_safe_without_a_key(host, is_loopback):
    address = Address(host)
    if is_loopback:
        address.require_safe(ApiKeys())
    else:
        with pytest.raises(ConfigError, match="Anybody could use this server"):
            address.require_safe(ApiKeys())
    address.require_safe(ApiKeys(["a-long-key"]))
    Address(host, allows_anybody=True).require_safe(ApiKeys())


def test_a_taken_port_is_told_before_the_base_is_loaded(tiny_llama_dir):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Cannot listen at 127.0.0.1:{port}: Address"):
            serve(tiny_llama_dir, port=port)


def test_keys_are_asked_for_and_limited(served_with, monkeypatch):
    served = served_with(
        api_keys=["a-long-key"], limits=Limits(requests_per_key=1, body_bytes=1000)
    )
    served.slow_down(monkeypatch)
    assert served.post("/v1/completions", BODY, 401)["code"] == "invalid_api_key"
    assert served.get("/metrics", 401)["error"]["type"] == "authentication_error"
    assert served.get("/health")["status"] == "ok"
    big = BODY | {"prompt": "a" * 1000}
    assert served.post("/v1/completions", big, 413, "a-long-key")["code"] == "body_too_large"
    with (
        served.http("a-long-key") as http,
        http.stream("POST", "/v1/completions", json=BODY | {"stream": True}) as response,
    ):
        lines = response.iter_lines()  # closing it would end the request
        next(lines)
        error = served.post("/v1/completions", BODY, 429, "a-long-key")
        assert error["code"] == "rate_limit_exceeded"
    line = served.lines()[0]
    assert line["key"] == "anonymous" and line["status"] == 401 and "a-long-key" not in str(line)


def test_a_full_queue_is_told_with_the_time_to_wait(served_with):
    served, goes_on = served_with(limits=Limits(waiting=1)), threading.Event()
    served.post("/v1/completions", BODY)  # what comes first prepares more
    served.engine.between_steps(goes_on.wait)
    first = threading.Thread(target=served.post, args=("/v1/completions", BODY))
    first.start()
    try:
        deadline = time.monotonic() + 30
        while not served.engine.stats.waiting:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with served.http() as http:
            response = http.post("/v1/completions", json=BODY)
    finally:
        goes_on.set()
    first.join()
    assert response.status_code == 429 and response.headers["retry-after"] == "1"
    assert response.json()["error"]["type"] == "rate_limit_error"
    served.post("/v1/completions", BODY | {"max_tokens": 2})


def test_more_connections_than_allowed_are_refused_and_the_others_answered(served_with):
    served = served_with(limits=Limits(connections=10))
    host, port = served.server.url.removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(30)]
    try:
        time.sleep(0.2)
        with served.http() as http:
            assert http.get("/v1/models").status_code == 503
    finally:
        for connection in idle:
            connection.close()
    time.sleep(0.2)
    assert served.get("/v1/models")["data"]


def test_the_end_finishes_what_runs_and_refuses_what_comes(served_with, monkeypatch):
    served = served_with()
    served.slow_down(monkeypatch, 0.01)
    texts = []

    def stream():
        body = BODY | {"stream": True}
        with served.http() as http, http.stream("POST", "/v1/completions", json=body) as response:
            for line in response.iter_lines():
                texts.append(line)

    with httpx2.Client(base_url=served.server.url, timeout=60) as kept:
        kept.get("/health")
        asking = threading.Thread(target=stream)
        asking.start()
        while len(texts) < 3:
            time.sleep(0.01)
        stopping = threading.Thread(target=served.server.stop)
        stopping.start()
        while not served.server.context.is_stopping:
            time.sleep(0.001)
        refused = kept.post("/v1/completions", json=BODY)
        states = [kept.get(path).status_code for path in ("/ready", "/health")]
    asking.join()
    stopping.join()
    assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
    assert refused.json()["error"]["code"] == "stopping"
    assert states == [503, 200]
    assert [line for line in texts if line][-1] == "data: [DONE]"
    assert json.loads(texts[-4].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    with pytest.raises(httpx2.ConnectError):
        served.get("/health")


def test_the_end_waits_no_longer_than_it_may(served_with, monkeypatch):
    served = served_with(shutdown_s=0.2)
    served.post("/v1/completions", BODY | {"max_tokens": 1})  # loads the adapter
    engine = served.engine
    monkeypatch.setattr(engine._steps, "step", lambda: time.sleep(0.01))
    results = []

    def ask():
        with served.http() as http:
            try:
                results.append(http.post("/v1/completions", json=BODY).status_code)
            except httpx2.HTTPError as error:
                results.append(type(error).__name__)

    asking = threading.Thread(target=ask)
    asking.start()
    while not engine.stats.running and not engine.stats.waiting:
        time.sleep(0.01)
    began = time.monotonic()
    served.server.stop()
    assert time.monotonic() - began < 10
    asking.join()
    assert results and results[0] != 200

"""What becomes of a call whose client leaves, fails or waits."""

import json
import socket
import time

import pytest

MESSAGES = [{"role": "user", "content": "sky"}]


@pytest.fixture
def request_bytes(served):
    """Return the bytes of a POST request."""

    def made(path, body):
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}\r\n\r\n"
        return head.encode() + content

    return made


def connected(served):
    host, port = served.server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def until(is_true, wait_s=10):
    end = time.monotonic() + wait_s
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def slow_steps(served, monkeypatch):
    """Make each step of the engine take a while."""
    served.slow_down(monkeypatch)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_answered_no_further(served, request_bytes, slow_steps, stream):
    engine = served.engine
    body = {"model": "german", "messages": MESSAGES, "max_tokens": 100, "ignore_eos": True}
    before = engine.stats.decoded_tokens
    with connected(served) as connection:
        connection.sendall(request_bytes("/v1/chat/completions", body | {"stream": stream, "n": 2}))
        until(lambda: engine.stats.decoded_tokens > before)
    until(lambda: not engine.stats.running and not engine.stats.waiting)
    assert engine.stats.decoded_tokens - before < 100
    until(lambda: any(line["status"] == 499 for line in served.lines()[-1:]))
    assert served.server.service.models[0].store.find("german").leases == 0


def test_a_client_that_leaves_while_it_sends_disturbs_nobody(served, request_bytes):
    with connected(served) as connection:
        connection.sendall(request_bytes("/v1/completions", {"prompt": "a"})[:-4])
    served.post("/v1/completions", {"model": "german", "prompt": "sky", "max_tokens": 2})


def test_a_failure_in_a_stream_is_its_last_event(served, monkeypatch):
    from lorakit.serving.http.routes import chat

    def fail(*_):
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(chat, "_logprobs", fail)
    body = {"model": "german", "messages": MESSAGES, "logprobs": True, "stream": True}
    with served.http() as http:
        text = http.post("/v1/chat/completions", json=body).text
    last = text.strip().split("\n\n")[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["type"] == "server_error"
    assert "secret" not in text and "[DONE]" not in text
    until(lambda: not served.engine.stats.running)


def test_an_unexpected_failure_is_a_500_that_tells_nothing(served, monkeypatch):
    from lorakit.serving.service import Service

    async def find(*_):
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(Service, "find", find)
    error = served.post("/v1/completions", {"model": "german", "prompt": "sky"}, 500)
    assert error["type"] == "server_error" and "secret" not in error["message"]

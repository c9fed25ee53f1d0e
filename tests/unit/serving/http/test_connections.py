"""Connections beyond the limit are refused; whoever is connected goes on."""

import json
import os
import resource
import socket
import subprocess
import sys
import threading
import time

import httpx2
import pytest

from lorakit.serving.http import connections
from lorakit.serving.http.limits import Limits

BODY = {"model": "german", "prompt": "sky", "max_tokens": 60, "ignore_eos": True}
REQUEST = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
TIMEOUT_S = 60

CLIENTS = """
import collections, json, resource, selectors, socket, sys, time
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
found, open_ones = collections.Counter(), selectors.DefaultSelector()
for number in range(count):
    one = socket.create_connection((host, port), timeout=20)
    try:
        one.sendall(b"GET /v1/models HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")
    except OSError:
        pass  # refused already: the answer is read below
    open_ones.register(one, selectors.EVENT_READ)
end = time.monotonic() + 40
while open_ones.get_map() and time.monotonic() < end:
    for key, _ in open_ones.select(1):
        try:
            found[key.fileobj.recv(12)[9:].decode() or "closed"] += 1
        except OSError as error:
            found[type(error).__name__] += 1
        open_ones.unregister(key.fileobj)
        key.fileobj.close()
print(json.dumps(found))
"""
"""Opens connections, all at once, then reads what each is answered first; prints counts."""


def address_of(served):
    host, port = served.server.url.removeprefix("http://").split(":")
    return host, int(port)


def connected(served):
    return socket.create_connection(address_of(served), timeout=TIMEOUT_S)


def answer_to(connection):
    """Return the status and the text of what a connection is answered until it is closed."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    head, _, body = b"".join(parts).decode().partition("\r\n\r\n")
    return head, body


def wait_until(is_true):
    until = time.monotonic() + TIMEOUT_S
    while not is_true():
        assert time.monotonic() < until
        time.sleep(0.01)


def many(served, count):
    """Let another process open connections at once; return what they were answered."""
    command = [sys.executable, "-S", "-c", CLIENTS, *map(str, address_of(served)), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    return json.loads(done.stdout)


def test_one_too_many_is_told_so_and_who_is_connected_goes_on(served_with):
    served = served_with(limits=Limits(connections=2))
    with httpx2.Client(base_url=served.server.url, timeout=TIMEOUT_S) as kept:
        assert kept.get("/health").status_code == 200
        silent = connected(served)
        wait_until(lambda: len(served.server._server.server_state.connections) == 2)
        for send in (True, False):  # a request, or nothing
            with connected(served) as refused:
                if send:
                    refused.sendall(REQUEST)
                head, body = answer_to(refused)
            assert head.startswith("HTTP/1.1 503 ") and "retry-after: 5" in head
            error = json.loads(body)["error"]
            assert (error["type"], error["code"]) == ("server_error", "too_many_connections")
            assert "got more than 2, expected at most" in error["message"]
        assert kept.get("/health").status_code == 200
        silent.close()
    wait_until(lambda: not served.server._server.server_state.connections)
    assert served.get("/v1/models")["data"]


def test_beyond_those_that_may_linger_they_are_closed_at_once(served_with, monkeypatch):
    monkeypatch.setattr(connections, "MOST_REFUSED", 0)
    served = served_with(limits=Limits(connections=1))
    with connected(served) as first:
        wait_until(lambda: served.server._server.server_state.connections)
        with connected(served) as refused:
            assert answer_to(refused)[0].startswith("HTTP/1.1 503 ")
        first.sendall(REQUEST)
        assert first.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("sent", [b"", b"GET /health HTT"], ids=["silent", "half a request"])
def test_who_sends_no_request_is_disconnected(served_with, monkeypatch, sent):
    monkeypatch.setattr(connections, "FIRST_REQUEST_S", 0.1)
    served = served_with()
    with connected(served) as silent:
        silent.sendall(sent)
        assert silent.recv(1) == b""
    with httpx2.Client(base_url=served.server.url, timeout=TIMEOUT_S) as kept:
        kept.get("/health")
        time.sleep(0.2)
        assert kept.get("/health").status_code == 200


def test_ten_thousand_connections_at_once(served_with, monkeypatch):
    needed, most = 10_200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most != resource.RLIM_INFINITY and most < needed:
        pytest.skip(f"a process may open {most} files here, and ten thousand sockets need more")
    served = served_with(limits=Limits(connections=500))
    served.slow_down(monkeypatch, 0.01)
    texts = []

    def stream():
        body = BODY | {"stream": True}
        with served.http() as http, http.stream("POST", "/v1/completions", json=body) as response:
            texts.extend(line for line in response.iter_lines() if line)

    asking = threading.Thread(target=stream)
    asking.start()
    wait_until(lambda: served.engine.stats.running)
    found = many(served, 10_000)
    asking.join(TIMEOUT_S)
    assert texts[-1] == "data: [DONE]"
    assert sum(found.values()) == 10_000
    assert found["200"] >= 1 and found["503"] >= 5_000, found
    wait_until(lambda: not served.server._server.server_state.connections)
    assert served.get("/v1/models")["data"]


def test_no_files_left_to_open_is_survived(served_with):
    served = served_with()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    # The process that connects is started before: it needs files too.
    command = [sys.executable, "-S", "-c", "input()\n" + CLIENTS, *map(str, address_of(served))]
    with subprocess.Popen(
        [*command, "200"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as clients:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 40, hard))
        try:
            found, _ = clients.communicate("\n", timeout=TIMEOUT_S)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sum(json.loads(found).values()) == 200
    wait_until(lambda: not served.server._server.server_state.connections)
    assert served.get("/v1/models")["data"]

"""The socket of the studio: which port, and who has it."""

import asyncio
import os
import socket

import pytest
import uvicorn

from lorakit.errors import ConfigError
from lorakit.studio import server
from lorakit.studio.server import StudioServer, bind


@pytest.fixture
def taken():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_taken_port_is_named_with_its_process(taken):
    with pytest.raises(ConfigError) as caught:
        bind("127.0.0.1", taken)
    message = str(caught.value)
    assert (
        f"Cannot listen at 127.0.0.1:{taken}: the port is used by process {os.getpid()}" in message
    )
    assert message.endswith("--port 0 takes the next free one.")


def test_port_0_takes_the_next_free_one(taken, monkeypatch):
    monkeypatch.setattr(server, "DEFAULT_PORT", taken)
    with bind("127.0.0.1", 0) as listening:
        assert listening.getsockname()[1] > taken


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
def test_a_host_that_is_not_here_is_refused(host):
    with pytest.raises(ConfigError, match=f"Cannot listen at {host}:8800"):
        bind(host, 8800)


def test_it_answers_until_it_is_stopped():
    import httpx

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    with StudioServer(app, bind("127.0.0.1", 0)).start() as running:
        assert httpx.get(running.url).status_code == 204
    with pytest.raises(httpx.ConnectError):
        httpx.get(running.url)


def test_it_looks_twice_a_second_whether_it_is_to_end(monkeypatch):
    slept, ticks = [], []

    async def sleep(seconds):
        slept.append(seconds)

    async def on_tick(counter):
        ticks.append(counter)
        return len(ticks) == 3

    running = server._QuietServer(uvicorn.Config(None))
    monkeypatch.setattr(running, "on_tick", on_tick)
    monkeypatch.setattr(server.asyncio, "sleep", sleep)
    asyncio.run(running.main_loop())
    assert slept == [0.5, 0.5]
    assert ticks == [0, 0, 0]  # uvicorn renews the date of its answers at 0

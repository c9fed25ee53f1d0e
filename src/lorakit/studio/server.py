"""The studio's server: a socket, uvicorn in a thread, and its end."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path
from typing import Self

import psutil
import uvicorn
from starlette.types import ASGIApp

from lorakit.errors import ConfigError
from lorakit.serving.http.threaded_server import ThreadedServer

DEFAULT_PORT = 8800
_PORTS_TRIED = 100
_TICK_S = 0.5


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that only waits for `listen`.

    Args:
        host: Name or address of an interface of this machine.
        port: Port; 0 takes the first free one from DEFAULT_PORT on.

    Raises:
        ConfigError: The port is taken, or the interface is not one of this machine.
    """
    if port:
        return _bind_one(host, port)
    for candidate in range(DEFAULT_PORT, DEFAULT_PORT + _PORTS_TRIED):
        try:
            return _bind_one(host, candidate)
        except ConfigError:
            continue
    return _bind_one(host, 0)


def _bind_one(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()  # of two programs that have bound it, one may listen
    except (OSError, OverflowError) as error:
        listening.close()
        holder = _holder(port)
        reason = getattr(error, "strerror", None) or str(error)
        if holder:
            reason = f"the port is used by {holder}"
        raise ConfigError(
            f"Cannot listen at {host}:{port}: {reason}. Choose another --port; --port 0 takes the "
            "next free one."
        ) from None
    return listening


def _holder(port: int) -> str | None:
    """Return a description of the process that listens at a port, as far as it may be seen."""
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):  # some systems show them to root alone
        return None
    for one in connections:
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.port == port:
            try:
                words = psutil.Process(one.pid).cmdline() if one.pid else []
            except psutil.Error:
                words = []
            called = " ".join([Path(words[0]).name, *words[1:3]]) if words else "another user's"
            return f"process {one.pid} ({called})" if one.pid else "another user's process"
    return None


class _QuietServer(uvicorn.Server):
    """Looks twice a second whether it is to end, not ten times, which takes time from a run."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # 0 also renews the date of the answers
            await asyncio.sleep(_TICK_S)


class StudioServer(ThreadedServer):
    """Serves the studio in a thread, until it is stopped."""

    failure = (
        "The studio could not start; its log above has the reason. Run it again with --debug for "
        "more."
    )

    def __init__(self, app: ASGIApp, listening: socket.socket):
        """Create a server that does not answer yet.

        Args:
            app: What it serves.
            listening: A bound socket.
        """
        config = uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            lifespan="on",
            ws_per_message_deflate=False,  # most messages are a few points
            loop="asyncio",
            timeout_graceful_shutdown=1,  # open pages would hold it up, and come back by themselves
            server_header=False,
        )
        super().__init__(_QuietServer(config), listening, "lorakit-studio")

    def start(self) -> Self:
        """Serve in another thread; return once it answers; see `ThreadedServer.start`."""
        # Collecting garbage would otherwise walk the libraries' objects while a run is watched,
        # which takes a tenth of a second from the run.
        gc.collect()
        gc.freeze()
        return super().start()

    def stop(self) -> None:
        """End the server; runs go on."""
        gc.unfreeze()  # frozen objects are never collected
        self._server.should_exit = True
        self.wait()
        self._socket.close()

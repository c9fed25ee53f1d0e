"""The server: a socket, uvicorn, and an end that finishes what runs."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import suppress
from dataclasses import dataclass

import uvicorn

from lorakit.errors import ConfigError
from lorakit.serving.http.app import build_app
from lorakit.serving.http.connections import MOST_REFUSED, LimitedConnection
from lorakit.serving.http.context import Context
from lorakit.serving.http.keys import ApiKeys
from lorakit.serving.http.threaded_server import ThreadedServer, is_loopback
from lorakit.serving.service import Overview, Service

_log = logging.getLogger(__name__)

_BACKLOG = 1024
"""Connections that may wait to be accepted; so many may be accepted at once before any of them is
refused, so they need open files besides."""

_POLL_S = 0.05
_KEPT_FILES = 256
"""Open files that are not connections."""


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: Name or address of an interface.
        port: Port; 0 takes a free one.
        allows_anybody: Whether other machines may reach it without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    allows_anybody: bool = False

    def require_safe(self, keys: ApiKeys) -> None:
        """Refuse to let anybody in without saying so.

        Raises:
            ConfigError: Other machines could use the server without a key.
        """
        if is_loopback(self.host) or keys.are_required or self.allows_anybody:
            return
        raise ConfigError(
            f"Anybody could use this server: got host {self.host} and no API key, expected a key "
            "for a server that other machines can reach. Add --api-key-file, or --no-key if the "
            "network is trusted."
        )

    def bind(self) -> socket.socket:
        """Return a socket at this address.

        Raises:
            ConfigError: It is taken, or is not one of this machine.
        """
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((self.host, self.port))
        except (OSError, OverflowError) as error:
            listening.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise ConfigError(
                f"Cannot listen at {self.host}:{self.port}: {reason}. Choose another --port; 0 "
                "takes a free one."
            ) from None
        return listening


class Server(ThreadedServer):
    """Serves a context in a thread until it is told to stop.

    Attributes:
        context: What it serves, and how.
    """

    def __init__(self, context: Context, listening: socket.socket, shutdown_s: float = 30.0):
        """Create a server that does not answer yet.

        Args:
            context: What is served.
            listening: A bound socket.
            shutdown_s: Seconds within which requests that run are finished at the end.
        """
        self.context = context
        connections, backlog = _room_for_connections(context.limits.connections)
        config = uvicorn.Config(
            build_app(context),
            access_log=False,
            log_config=None,
            lifespan="on",
            loop="asyncio",
            http=LimitedConnection,
            limit_concurrency=connections,
            backlog=backlog,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=5,
            server_header=False,
        )
        server = _FinishingServer(config, context, shutdown_s)
        super().__init__(server, listening, "lorakit-server")

    @property
    def service(self) -> Service:
        """The models."""
        return self.context.service

    def overview(self) -> Overview:
        """Return what is served now."""
        return self.service.overview()

    def stop(self) -> None:
        """Finish the requests that run, refuse others, and end."""
        self.context.is_stopping = True
        if self.has_started:
            self.wait()
            self._thread.join()
        else:
            self.context.close()
        self._socket.close()


class _FinishingServer(uvicorn.Server):
    """Answers 503 to new requests while it finishes those that run, then ends."""

    def __init__(self, config: uvicorn.Config, context: Context, shutdown_s: float):
        super().__init__(config)
        self.context = context
        self._shutdown_s = shutdown_s

    async def main_loop(self) -> None:
        """Serve until the end begins, then until what runs is finished or out of time."""
        serving = asyncio.ensure_future(super().main_loop())
        while not self.context.is_stopping:
            await asyncio.sleep(_POLL_S)
        until = time.monotonic() + self._shutdown_s
        while self.context.running and time.monotonic() < until:
            await asyncio.sleep(_POLL_S)
        if self.context.running:
            _log.warning("%d requests were not finished in time.", self.context.running)
            # So each is told so, also in the middle of a stream; uvicorn would only cut it off.
            await asyncio.to_thread(self.context.service.stop, finish_running=False)
        self.should_exit = True
        await serving


def _room_for_connections(wanted: int) -> tuple[int, int]:
    """Raise this process's limit of open files as far as needed and allowed.

    Returns: How many connections that allows, at most those wanted, and how many may wait.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted, _BACKLOG
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _BACKLOG + MOST_REFUSED + _KEPT_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted, _BACKLOG
    backlog = min(_BACKLOG, max(soft // 8, 1))
    return max(1, min(wanted, max(soft - backlog - MOST_REFUSED - _KEPT_FILES, soft // 4))), backlog

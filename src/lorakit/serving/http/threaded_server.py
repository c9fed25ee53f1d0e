"""A web server in a thread: where it listens, its start, and waiting for its end."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import Self

import uvicorn

from lorakit.errors import ConfigError, LorakitError

_POLL_S = 0.02


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a host.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "my-machine")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def url_of(listening: socket.socket) -> str:
    """Return where requests to a socket are sent, without a path."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class ThreadedServer(ABC):
    """Serves in a thread until it is stopped; as a context manager, to the end of a block.

    Attributes:
        url: Where requests are sent, without a path.
    """

    failure = "The server could not start; its log has the reason."
    """Message if it does not answer."""

    def __init__(self, server: uvicorn.Server, listening: socket.socket, name: str):
        """Create a server that does not answer yet.

        Args:
            server: What answers.
            listening: A bound socket.
            name: Name of the thread.
        """
        self.url = url_of(listening)
        self._server = server
        self._socket = listening
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._has_ended = threading.Event()

    def start(self) -> Self:
        """Serve in another thread; return once it answers.

        Raises:
            ConfigError: Another program has begun to listen at the port since it was bound.
            LorakitError: It could not start.
        """
        try:
            self._socket.listen(self._server.config.backlog)
        except OSError as error:
            raise ConfigError(
                f"Cannot listen at {self.url}: {error.strerror}. Choose another --port; 0 takes a "
                "free one."
            ) from None
        self._thread.start()
        while not self._server.started:
            if self._has_ended.is_set():
                raise LorakitError(self.failure)
            time.sleep(_POLL_S)
        return self

    @property
    def has_started(self) -> bool:
        """Whether `start` has been called."""
        return self._thread.ident is not None

    def _run(self) -> None:
        try:
            with suppress(SystemExit):  # raised if the app cannot start
                self._server.run(sockets=[self._socket])
        finally:
            self._has_ended.set()

    def wait(self) -> None:
        """Wait until the server has ended; a signal may interrupt it."""
        # An interrupted `Thread.join` would count the thread as ended.
        self._has_ended.wait()

    @abstractmethod
    def stop(self) -> None:
        """End the server, and close its socket."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

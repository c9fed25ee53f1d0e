"""A web server in a thread: it answers until it is stopped, or says that it cannot."""

import socket

import pytest
import uvicorn

from lorakit.errors import ConfigError, LorakitError
from lorakit.serving.http.threaded_server import ThreadedServer, url_of


class Threaded(ThreadedServer):
    failure = "It could not start."

    def stop(self):
        self._server.should_exit = True
        self.wait()
        self._socket.close()


async def failing(scope, receive, send):
    raise RuntimeError("no model")


def server(listening, **options):
    config = uvicorn.Config(failing, log_config=None, loop="asyncio", **options)
    return Threaded(uvicorn.Server(config), listening, "a-thread")


@pytest.fixture
def listening():
    with socket.socket() as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        yield bound


def test_it_runs_from_its_start_to_the_end_of_a_block(listening):
    served = server(listening, lifespan="off")
    assert not served.has_started
    with served.start():
        assert served.has_started and served._thread.name == "a-thread"
    assert not served._thread.is_alive() or not served._thread.join(5)


def test_a_server_that_ends_before_it_answers_says_so(listening):
    with pytest.raises(LorakitError, match="It could not start"):
        server(listening, lifespan="on").start()


def test_another_program_may_have_begun_to_listen_meanwhile(listening):
    with socket.socket() as first:
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        first.bind(listening.getsockname())
        first.listen()
        with pytest.raises(ConfigError, match=r"Cannot listen at http://127.0.0.1:\d+: Address"):
            server(listening, lifespan="off").start()


def test_the_url_of_all_interfaces_names_this_machine():
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        port = other.getsockname()[1]
        assert url_of(other) == f"http://{socket.gethostname()}:{port}"

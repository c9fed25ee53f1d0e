"""A Python for what starts processes itself: each is a fork of one that has the libraries.

Ray's workers and the processes of `accelerate launch` would import them for seconds otherwise.
"""

import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from forked import become, fork_server

# What is started asks the server for the fork, passes on its streams, waits for the end of the fork
# and ends as it did. It imports little, so that it takes no time.
_PROGRAM = """#!{python} -SE
import json, os, signal, socket, sys

given = [[word for word in sys.argv[1:] if word != "-u"], os.getcwd(), dict(os.environ)]
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
socket.send_fds(connection, [b"."], [0, 1, 2])
connection.sendall(json.dumps(given).encode() + b"\\n")
answers = connection.makefile()
pid = int(answers.readline())
signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
sys.exit(int(answers.readline() or 1))
"""


@contextmanager
def forked_python() -> Iterator[str]:
    """Yield the path of a program that runs FILE, `-m MODULE` or `-c CODE` as Python, by a fork."""
    folder = Path(tempfile.mkdtemp(prefix="lorakit-python-"))  # of a path that a socket may have
    program, address = folder / "python", str(folder / "address")
    program.write_text(_PROGRAM.format(python=sys.executable, address=address), encoding="utf-8")
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        server = fork_server.Process(target=_serve, args=(listener,), daemon=True)
        server.start()
    yield str(program)
    server.kill()
    server.join()
    shutil.rmtree(folder)


def _serve(listener: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing remains of what has answered
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            break
        connection.close()
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, (stdin, *streams), *_ = socket.recv_fds(connection, 1, 3)
    words, folder, environment = json.loads(connection.makefile().readline())
    pid = os.fork()
    if pid:
        with suppress(OSError):  # the program may be gone before it hears of its fork
            connection.sendall(b"%d\n" % pid)
        ready, *_ = select.select([connection, os.pidfd_open(pid)], [], [])
        if connection in ready:  # the program was killed, which its fork does not outlive
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with suppress(OSError):
            connection.sendall(b"%d\n" % status)
        return
    connection.close()
    os.setpgrp()  # Ray ends a worker by a signal to its group
    os.dup2(stdin, 0)
    sys.stdin = os.fdopen(0)  # that of a forked server is no stream
    option = words.pop(0) if words[0].startswith("-") else ""
    with become(words, environment, folder, streams):
        if option == "-c":
            sys.path.insert(0, "")
            exec(words[0], {"__name__": "__main__"})
        elif option == "-m":
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")

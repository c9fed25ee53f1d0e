"""A Python for what starts processes itself: each is a fork of one that has the libraries.

Ray's workers, the processes of `accelerate launch`, the studio and its commands, and the workers of
the suite would import them for seconds otherwise.
"""

import fcntl
import json
import multiprocessing.resource_tracker
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

from forked import PYTHON, become, fork_server

# What is started asks the server for the fork, passes on its streams, waits for the end of the fork
# and ends as it did. It imports little, so that it takes no time. Processes of `multiprocessing`
# have pipes too, which they know by their numbers.
_PROGRAM = """#!{python} -SE
import json, os, signal, socket, sys

words = [word for word in sys.argv[1:] if word not in ("-u", "-B")]
files = [0, 1, 2]
if any("from multiprocessing." in word for word in words):
    opened = [number for number in map(int, os.listdir("/proc/self/fd")) if number > 2]
    files += [number for number in opened if os.path.exists(f"/proc/self/fd/{{number}}")]
given = [words, os.getcwd(), dict(os.environ), files]
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
socket.send_fds(connection, [b"."], files)
connection.sendall(json.dumps(given).encode() + b"\\n")
answers = connection.makefile()
pid = int(answers.readline())
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: os.kill(pid, number))
status = int(answers.readline() or 1)
if status < 0:
    if -status in (signal.SIGTERM, signal.SIGINT):
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""

_MOST_FILES = 64
_ABOVE = 500
"""Files of a process have smaller numbers."""


@contextmanager
def forked_python() -> Iterator[str]:
    """Yield the path of a program that runs FILE, `-m MODULE` or `-c CODE` as Python, by a fork.

    It is `sys.executable` of what it runs.
    """
    folder = Path(tempfile.mkdtemp(prefix="lorakit-python-"))  # of a path that a socket may have
    program, address = folder / "python", str(folder / "address")
    program.write_text(_PROGRAM.format(python=PYTHON, address=address), encoding="utf-8")
    program.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        server = fork_server.Process(target=_serve, args=(listener, str(program)), daemon=True)
        server.start()
    yield str(program)
    server.kill()
    server.join()
    shutil.rmtree(folder)


def _serve(listener: socket.socket, program: str) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing remains of what has answered
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            break
        connection.close()
    listener.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, files, *_ = socket.recv_fds(connection, 1, _MOST_FILES)
    words, folder, environment, numbers = json.loads(connection.makefile().readline())
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
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    streams = _renumber(files, numbers)
    sys.stdin = os.fdopen(0)  # that of a forked server is no stream
    sys.executable = program
    multiprocessing.set_executable(program)
    multiprocessing.current_process().daemon = False  # it may start processes
    tracker = multiprocessing.resource_tracker._resource_tracker
    tracker._fd = tracker._pid = None  # the server's would tell at its end what was left behind
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


def _renumber(files: list[int], numbers: list[int]) -> list[int]:
    """Give files the numbers that they had where they come from; return copies of the outputs."""
    stdin, *outputs = [fcntl.fcntl(file, fcntl.F_DUPFD, _ABOVE) for file in files]
    for file in files:
        os.close(file)
    os.dup2(stdin, 0)
    os.close(stdin)
    for copy, number in zip(outputs[2:], numbers[3:], strict=True):
        os.dup2(copy, number)
        os.close(copy)
    return outputs[:2]

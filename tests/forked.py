"""Programs in processes that have the libraries already: importing them takes seconds each time.

One process of this test process imports them once and does nothing else; every program is a fork of
it. So a program may be killed, stopped or sent elsewhere, as any other process.
"""

import atexit
import faulthandler
import gc
import importlib
import multiprocessing
import multiprocessing.connection
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PYTHON = os.environ.setdefault("LORAKIT_TESTS_PYTHON", sys.executable)
"""The Python of the tests; in a fork, `sys.executable` may be a program that asks for a fork."""

TIMEOUT_S = 240
LIBRARIES = [
    "lorakit",  # hides what some of the others say
    *("torch", "torch.distributed", "accelerate", "bitsandbytes", "datasets", "trl"),
    *("transformers.trainer", "lorakit.training.run", "lorakit.studio.app", "lorakit.cli.main"),
    *("lorakit.planning.alternatives", "matplotlib.figure", "torch.utils.tensorboard"),
    "sklearn.metrics",
]

LORAKIT = "from lorakit.__main__ import main; main()"
"""The command line as a program."""

fork_server = multiprocessing.get_context("forkserver")
fork_server.set_forkserver_preload(LIBRARIES)


@dataclass(frozen=True)
class Finished:
    """The result of a program, named as in `subprocess`."""

    returncode: int
    stdout: str
    stderr: str


class Program:
    """A Python program that runs in a separate process."""

    def __init__(self, code: str, *arguments: object, environment: Mapping[str, str] | None = None):
        self._folder = Path(tempfile.mkdtemp(prefix="lorakit-forked-"))
        words = ["-c", *map(str, arguments)]
        given = (code, words, dict(environment or os.environ), os.getcwd(), str(self._folder))
        self.process = fork_server.Process(target=_be_program, args=given)
        self.process.start()

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        shutil.rmtree(self._folder)

    def finished(self, timeout_s: float = TIMEOUT_S) -> Finished:
        """Wait until the program ends."""
        self.process.join(timeout_s)
        code = self.process.exitcode
        if code is None:
            raise TimeoutError(f"still running after {timeout_s} s: {self.printed('stderr')}")
        return Finished(code, self.printed("stdout"), self.printed("stderr"))

    def printed(self, stream: str) -> str:
        """Return what it has printed so far, to "stdout" or "stderr"."""
        path = self._folder / stream
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def run(code: str, *arguments: object, **changes: str) -> Finished:
    """Run a program to its end."""
    with Program(code, *arguments, environment=os.environ | changes) as program:
        return program.finished()


def run_together(code: str, *arguments: object, count: int = 2) -> list[Finished]:
    """Run a program in processes that meet over the loopback interface, as torchrun starts them.

    Where one fails, the others are ended, as torchrun does.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    common |= {"MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    with ExitStack() as stack:
        programs = [
            stack.enter_context(
                Program(
                    code,
                    *arguments,
                    environment=os.environ | common | {"RANK": rank, "LOCAL_RANK": rank},
                )
            )
            for rank in map(str, range(count))
        ]
        _wait_for([program.process for program in programs])
        return [program.finished() for program in programs]


def _wait_for(processes: Sequence[multiprocessing.Process]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    running = list(processes)
    while running:
        if time.monotonic() > deadline:
            raise TimeoutError(f"still running after {TIMEOUT_S} s")
        multiprocessing.connection.wait([one.sentinel for one in running], timeout=1)
        running = [one for one in running if one.exitcode is None]
        if any(one.exitcode for one in processes):
            for one in running:
                one.terminate()


def _be_program(
    code: str, words: list[str], environment: dict[str, str], folder: str, output: str
) -> None:
    """Become the program, whose streams are files."""
    sys.executable = PYTHON
    flags = os.O_WRONLY | os.O_CREAT
    streams = [os.open(Path(output) / name, flags) for name in ("stdout", "stderr")]
    with become(words, environment, folder, streams):
        exec(compile(code, "<program>", "exec"), {"__name__": "__main__"})


@contextmanager
def become(
    words: list[str], environment: Mapping[str, str], folder: str, streams: Sequence[int]
) -> Iterator[None]:
    """Give this process a program's arguments, environment, folder and streams in the block."""
    import huggingface_hub
    import torch

    # Nothing looks for garbage among the objects of the libraries, which would copy their memory:
    # training does so, and NiceGUI walks through all objects to find its server.
    gc.freeze()
    torch.set_num_threads(1)
    for number, file in enumerate(streams, 1):
        os.dup2(file, number)
        os.close(file)
    faulthandler.enable()  # a crash of compiled code says where it was
    os.environ.clear()
    os.environ.update(environment | {"OMP_NUM_THREADS": "1"})  # for what it starts in turn
    importlib.reload(huggingface_hub.constants)  # of the hub that the environment names
    os.chdir(folder)
    sys.argv = words
    if environment.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)
    try:
        yield
    finally:
        atexit._run_exitfuncs()  # a process of this kind would leave without

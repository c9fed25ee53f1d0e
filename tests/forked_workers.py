"""Run tests in forks of the process that collected them, with `-p tests.forked_workers --forks 3`.

The libraries are imported, the tests collected and the server of forks (`forked.py`) started once,
not once in each worker. A worker takes the next file of tests when it has finished one, so that
what the tests of a file share is made once.
"""

import atexit
import os
import signal
import time
from collections.abc import Iterator
from itertools import chain, pairwise
from multiprocessing import forkserver, util
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

import pytest

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking CUDA itself forbids to fork

_NUMBER = 4
"""Bytes of the number of a file in the queue."""
_GRACE_S = 20


def pytest_addoption(parser):
    parser.addoption("--forks", type=int, default=0, help="number of forks that run the tests")


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session):
    """Let the server of forks import the libraries while the tests are collected."""
    if session.config.option.forks:
        import forked  # noqa: F401

        capture = session.config.pluginmanager.getplugin("capturemanager")
        capture.resume_global_capture()  # for what the libraries print
        forkserver.ensure_running()
        capture.suspend_global_capture()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    if not session.config.option.forks or session.config.option.collectonly:
        return None
    if session.testsfailed:
        raise session.Interrupted(f"{session.testsfailed} errors during collection")
    _Suite(session).run()
    return True


class _Suite:
    """The workers, what each of them has taken from the queue, and what it is running."""

    def __init__(self, session):
        self._session = session
        by_file = {}
        for number, item in enumerate(session.items):
            by_file.setdefault(item.path, []).append(number)
        self._files = list(by_file.values())
        self._basetemp = session.config._tmp_path_factory.getbasetemp()
        self._started = 0
        self._pids, self._left, self._running = {}, {}, {}

    def run(self):
        """Run all tests and report them."""
        session = self._session
        capture = session.config.pluginmanager.getplugin("capturemanager")
        capture.read_global_capture()
        capture.stop_global_capturing()  # a worker has its own
        self._queue, queued = os.pipe()
        # A pipe holds 65,536 bytes: many more files than there are.
        os.write(queued, b"".join(n.to_bytes(_NUMBER) for n in range(len(self._files))))
        os.close(queued)
        try:
            for _ in range(session.config.option.forks):
                self._start([])
            while self._pids:
                for worker in wait(list(self._pids)):
                    self._hear(worker)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
        finally:
            self._end()

    def _start(self, first: list[int]):
        """Fork a worker, which runs some tests before it takes files."""
        ours, theirs = Pipe()
        self._started += 1
        pid = os.fork()
        if pid == 0:
            for other in [ours, *self._pids]:
                other.close()
            _work(self._session, self._tests(first, theirs), theirs, self._folder())
        theirs.close()
        self._pids[ours], self._left[ours] = pid, list(first)

    def _folder(self) -> Path:
        return self._basetemp / f"worker-{self._started}"

    def _tests(self, first: list[int], results: Connection) -> Iterator[int]:
        """Yield numbers of tests; a worker calls this."""
        yield from first
        while number := os.read(self._queue, _NUMBER):
            taken = self._files[int.from_bytes(number)]
            results.send(("taken", taken))
            yield from taken

    def _hear(self, worker: Connection):
        """Handle a message of a worker, or its end."""
        hook = self._session.config.hook
        try:
            what, value = worker.recv()
        except (EOFError, ConnectionResetError):
            self._bury(worker)
            return
        if what == "taken":
            self._left[worker] += value
        elif what == "runs":
            self._running[worker] = value
            item = self._session.items[value]
            hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        else:
            number = self._running.pop(worker)
            self._left[worker].remove(number)
            for each in value:
                config = self._session.config
                report = hook.pytest_report_from_serializable(config=config, data=each)
                hook.pytest_runtest_logreport(report=report)
            item = self._session.items[number]
            hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _bury(self, worker: Connection):
        """Report the test that killed its worker, and let another worker run what it had left."""
        worker.close()
        code = os.waitstatus_to_exitcode(os.waitpid(self._pids.pop(worker), 0)[1])
        number, left = self._running.pop(worker, None), self._left.pop(worker)
        if number is not None:
            item = self._session.items[number]
            report = pytest.TestReport(
                nodeid=item.nodeid,
                location=item.location,
                keywords={},
                outcome="failed",
                longrepr=f"The worker that ran {item.nodeid} ended with exit code {code}.",
                when="call",
            )
            self._session.config.hook.pytest_runtest_logreport(report=report)
            left.remove(number)
            self._start(left)
        elif code or left:
            raise RuntimeError(f"A worker ended with exit code {code}; {len(left)} tests are left.")

    def _end(self):
        """End workers that still run: by Ctrl-C, so that their fixtures end what they started."""
        deadline = time.monotonic() + _GRACE_S
        for pid in self._pids.values():
            os.kill(pid, signal.SIGINT)
        for worker, pid in self._pids.items():
            while wait([worker], max(0, deadline - time.monotonic())):
                try:
                    worker.recv()
                except (EOFError, ConnectionResetError):
                    break
            else:
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(self._queue)


class _Reports:
    """What a worker tells about the test that it runs."""

    def __init__(self, config):
        self._config, self.of_test = config, []

    def pytest_runtest_logreport(self, report):
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self.of_test.append(data)


def _work(session, tests: Iterator[int], results: Connection, folder: Path):
    """Be a worker: run tests, send their reports, and end this process."""
    code = 1
    try:
        atexit._clear()  # those belong to the process that collected the tests
        server = forkserver._forkserver  # started by that process, and asked by all
        server.ensure_running = forkserver.ensure_running = lambda: None
        plugins = session.config.pluginmanager
        plugins.unregister(name="terminalreporter")
        plugins.getplugin("capturemanager").start_global_capturing()
        reports = _Reports(session.config)
        plugins.register(reports)
        folder.mkdir()
        session.config._tmp_path_factory._basetemp = folder
        try:
            for number, following in pairwise(chain(tests, [None])):
                results.send(("runs", number))
                nextitem = None if following is None else session.items[following]
                session.config.hook.pytest_runtest_protocol(
                    item=session.items[number], nextitem=nextitem
                )
                results.send(("ran", reports.of_test))
                reports.of_test = []
            code = 0
        finally:
            session._setupstate.teardown_exact(None)
            atexit._run_exitfuncs()
            util._exit_function()
    finally:
        os._exit(code)

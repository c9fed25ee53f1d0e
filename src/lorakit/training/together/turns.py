"""Threads that take turns: one runs at a time, until it asks for something or ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lorakit.libraries.machine_memory import return_freed_memory
from lorakit.ops.native import openmp
from lorakit.training.together.process_state import ProcessState


class Turn:
    """One of the threads.

    Attributes:
        name: Its name.
        request: What it waits for; None while it can run.
        answer: The answer to its latest request.
        problem: The error that answers it instead.
        state: The process's state as it has left it.
        does_little: Whether what is large is computed for it at its requests.
        error: What ended it; None if it returned.
        result: What it returned.
    """

    def __init__(self, name: str, work: Callable[[], Any]):
        self.name = name
        self.request: Any = None
        self.answer: Any = None
        self.problem: BaseException | None = None
        self.state: ProcessState
        self.does_little = False
        self.error: BaseException | None = None
        self.result: Any = None
        self.is_over = threading.Event()
        self._work = work
        self._may_run = threading.Semaphore(0)
        self._threads = 1

    def wake(self) -> None:
        """Let it run."""
        self._may_run.release()

    def sleep(self) -> None:
        """Wait, in its own thread, until it may run; then the process has its state."""
        self._may_run.acquire()
        self.state.restore()

    def run(self) -> None:
        """Do its work, in its own thread."""
        self.sleep()
        self._threads = torch.get_num_threads()
        try:
            self.result = self._work()
        except BaseException as error:  # raised again by whoever waits for the result
            self.error = error

    def do_little(self, does_little: bool) -> None:
        """Compute without OpenMP threads from now on, in its own thread; or with them again."""
        if does_little != self.does_little:
            self.does_little = does_little
            openmp.end_waiting_threads()
            openmp.compute_with(1 if does_little else self._threads)

    def succeed(self, answer: Any) -> None:
        """Answer its request."""
        self.request, self.answer = None, answer

    def fail(self, problem: BaseException) -> None:
        """Answer its request by an error."""
        self.request, self.problem = None, problem


class Turns:
    """Lets one of several threads run at a time.

    A thread keeps its turn until it requests something. When all wait, one more thread serves the
    requests. So nothing here runs at the same time, and each thread finds the process as it has
    left it.

    A thread that waits keeps no OpenMP threads: with more of them than processors, those of the
    thread that computes would sleep between any two products. Only the thread that serves keeps
    them if all others do little: new ones often begin on the processor of the thread that waits
    for them, and are moved to another one only after milliseconds.
    """

    def __init__(self, serve: Callable[[Sequence[Turn]], None]):
        """Create the turns.

        Args:
            serve: Called with the threads when all wait; answers at least one request.
        """
        self._serve = serve
        self._turns: list[Turn] = []
        self._changing = threading.RLock()
        self._before: ProcessState | None = None
        """The state of the process before the first of the threads that run."""
        self._places: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        """For the thread that serves: who is next, when all wait; None when all have ended."""
        self._server: threading.Thread

    def start(self, *turns: Turn) -> None:
        """Start threads, from any thread; each runs when it is its turn.

        Raises:
            RuntimeError: The system has no room for a thread; those before it run.
        """
        with self._changing:
            is_first = not self._turns
            if is_first:
                self._before = ProcessState.current()
                self._places = queue.SimpleQueue()
                self._server = _start_thread(self._serve_all, "server of turns", self._places)
            try:
                for turn in turns:
                    turn.state = self._before.for_new_run()  # type: ignore[union-attr]  # set at the first start
                    _start_thread(self._run, turn.name, turn)
                    self._turns.append(turn)
            finally:
                if is_first and self._turns:
                    openmp.end_waiting_threads()
                    self._turns[0].wake()
                elif is_first:
                    self._end_server()

    def ask(self, turn: Turn, request: Any) -> Any:
        """Wait for the answer to a request, in the thread that has its turn.

        Raises:
            BaseException: The error that answers it.
        """
        turn.request = request
        turn.state = ProcessState.current()
        if not turn.does_little:
            return_freed_memory()
        openmp.end_waiting_threads()
        self._pass_on(self._turns.index(turn) + 1)
        turn.sleep()
        problem, turn.problem = turn.problem, None
        if problem is not None:
            raise problem
        answer, turn.answer = turn.answer, None
        return answer

    def _pass_on(self, place: int) -> None:
        """Wake the next thread from a place on that can run, or the one that serves."""
        following = self._find_next(place)
        if following is None:
            self._places.put(place)
        else:
            following.wake()

    def _find_next(self, place: int) -> Turn | None:
        turns = self._turns[place:] + self._turns[:place]
        return next((one for one in turns if one.request is None), None)

    def _run(self, turn: Turn) -> None:
        turn.run()
        openmp.end_waiting_threads()
        with self._changing:
            place = self._turns.index(turn)
            self._turns.remove(turn)
            if self._turns:
                self._pass_on(place)
            else:
                self._before.restore()  # type: ignore[union-attr]  # set at the first start
                self._end_server()
        turn.is_over.set()

    def _end_server(self) -> None:
        self._places.put(None)
        self._server.join()

    def _serve_all(self, places: queue.SimpleQueue[int | None]) -> None:
        """Serve requests whenever all wait, until all have ended."""
        while (place := places.get()) is not None:
            self._serve_and_wake(place)
        openmp.end_waiting_threads()

    def _serve_and_wake(self, place: int) -> None:
        """Serve requests, and wake the next thread that can run.

        No thread is named outside, where a frame that waits would keep what has ended.
        """
        while (following := self._find_next(place)) is None:
            turns = self._turns[:]
            turns[0].state.use_device()
            try:
                self._serve(turns)
            except BaseException as error:  # raised again in those who wait
                for turn in turns:
                    turn.fail(error)
        if not all(turn.does_little for turn in self._turns[:]):
            openmp.end_waiting_threads()
        following.wake()


def _start_thread(work: Callable[..., None], name: str, *args: Any) -> threading.Thread:
    thread = threading.Thread(target=work, args=args, name=name, daemon=True)
    thread.start()
    return thread

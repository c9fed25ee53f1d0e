"""Threads that take turns: one runs at a time, until it asks for something or ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

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
        error: What ended it; None if it returned.
        result: What it returned.
    """

    def __init__(self, name: str, work: Callable[[], Any]):
        self.name = name
        self.request: Any = None
        self.answer: Any = None
        self.problem: BaseException | None = None
        self.state: ProcessState
        self.error: BaseException | None = None
        self.result: Any = None
        self.is_over = threading.Event()
        self._work = work
        self._may_run = threading.Semaphore(0)

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
        try:
            self.result = self._work()
        except BaseException as error:  # raised again by whoever waits for the result
            self.error = error

    def succeed(self, answer: Any) -> None:
        """Answer its request."""
        self.request, self.answer = None, answer

    def fail(self, problem: BaseException) -> None:
        """Answer its request by an error."""
        self.request, self.problem = None, problem


class Turns:
    """Lets one of several threads run at a time.

    A thread keeps its turn until it requests something. When all wait, the requests are served in
    the thread that asked last. So nothing here runs at the same time, and each thread finds the
    process as it has left it. A thread that waits keeps no OpenMP threads: with more of them than
    processors, those of the thread that computes would sleep between any two products.
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

    def start(self, *turns: Turn) -> None:
        """Start threads, from any thread; each runs when it is its turn.

        Raises:
            RuntimeError: The system has no room for a thread; those before it run.
        """
        with self._changing:
            is_first = not self._turns
            if is_first:
                self._before = ProcessState.current()
            try:
                for turn in turns:
                    turn.state = self._before.for_new_run()  # type: ignore[union-attr]  # set at the first start
                    arguments = {"args": (turn,), "name": turn.name, "daemon": True}
                    threading.Thread(target=self._run, **arguments).start()
                    self._turns.append(turn)
            finally:
                if is_first and self._turns:
                    openmp.end_waiting_threads()
                    self._turns[0].wake()

    def ask(self, turn: Turn, request: Any) -> Any:
        """Wait for the answer to a request, in the thread that has its turn.

        Raises:
            BaseException: The error that answers it.
        """
        turn.request = request
        turn.state = ProcessState.current()
        following = self._next_after(turn)
        if following is turn:
            turn.state.restore()
        else:
            openmp.end_waiting_threads()
            following.wake()
            turn.sleep()
        problem, turn.problem = turn.problem, None
        if problem is not None:
            raise problem
        answer, turn.answer = turn.answer, None
        return answer

    def _run(self, turn: Turn) -> None:
        turn.run()
        openmp.end_waiting_threads()
        with self._changing:
            if len(self._turns) > 1:
                self._next_after(turn, leaves=True).wake()
            else:
                self._turns.remove(turn)
                self._before.restore()  # type: ignore[union-attr]  # set at the first start
        turn.is_over.set()

    def _next_after(self, turn: Turn, *, leaves: bool = False) -> Turn:
        """Return the next thread that can run, after serving requests if there is none."""
        place = self._turns.index(turn)
        if leaves:
            self._turns.remove(turn)
        while True:
            turns = self._turns[place:] + self._turns[:place]
            if not leaves:
                turns = turns[1:] + turns[:1]
            found = next((one for one in turns if one.request is None), None)
            if found is not None:
                return found
            self._serve(self._turns[:])

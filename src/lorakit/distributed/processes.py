"""Several processes that train one adapter: which of them this is, and how they agree.

A launcher (torchrun, accelerate launch, Ray Train) runs the same program several times. The main
process alone looks at the run directory and writes to it; what it finds, the others are told. Where
each process could fail on its own, all of them raise the first error of any, so that none waits
for one that has left.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import distributed

from lorakit.errors import LorakitError, TrainingError

T = TypeVar("T")

TERMINATED = 143
"""Exit code: the shell's for a process ended by SIGTERM."""

_PATIENCE = timedelta(days=1)
"""How long processes wait for one that loads a model or turns rows into tokens."""

_STEP_TIMEOUT_S = 1800
"""How long a process waits for another in a step, unless training.ddp_timeout says otherwise; the
default of transformers."""

_TIMED_OUT = re.compile(r"[Tt]imed out waiting|[Tt]imeout|Application timeout")

_AGREED = "_is_agreed"

_group: Any = None
_step_group: Any = None


# ---- who is there ----


def process_count() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if _is_started() else 1


def process_rank() -> int:
    """Return which of them this is, from 0."""
    return distributed.get_rank() if _is_started() else 0


def is_main() -> bool:
    """Whether this process is the one that writes files and talks to the user."""
    return process_rank() == 0


def is_local_rank_zero() -> bool:
    """Whether this process is the first of those on its machine."""
    return process_count() == 1 or int(os.environ.get("LOCAL_RANK", "0")) == 0


def start(use_cpu: bool | None = None, timeout_s: int | None = None) -> None:
    """Meet the other processes, if a launcher has started several; else do nothing.

    Args:
        use_cpu: Whether to train on the CPU; None does where there is no accelerator.
        timeout_s: How long to wait for another process in a step, `training.ddp_timeout`; None is
            half an hour. Where a launcher has made the process group, its own timeout holds there.
    """
    global _group, _step_group
    timeout = timedelta(seconds=timeout_s or _STEP_TIMEOUT_S)
    if not _is_started():
        if int(os.environ.get("WORLD_SIZE", "1")) < 2:
            return
        from accelerate import PartialState

        cpu = not torch.accelerator.is_available() if use_cpu is None else use_cpu
        PartialState(cpu=cpu, timeout=timeout)
    if _group is None and process_count() > 1:
        # Of its own, for it waits longer, works on the CPU, and is in nobody's way.
        _group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        _step_group = distributed.new_group(backend="gloo", timeout=timeout)


def finish() -> None:
    """Part from the other processes at the end of a program."""
    global _group, _step_group
    if _is_started():
        distributed.destroy_process_group()
    _group = _step_group = None


def _is_started() -> bool:
    return distributed.is_available() and distributed.is_initialized()


# ---- agreeing ----


def main_decides(decide: Callable[[], T]) -> T:
    """Let the main process run a function, and return its result in every process.

    Args:
        decide: Its result is sent to the others, so it can be pickled.

    Raises:
        Exception: What `decide` raised, in every process.
    """
    if process_count() == 1:
        return decide()
    outcome: list[Any] = [_tried(decide) if is_main() else None]
    distributed.broadcast_object_list(outcome, src=0, group=_group)
    value, error = outcome[0]
    if error is not None:
        raise _marked(error)
    return value


def all_agree(act: Callable[[], T]) -> T:
    """Run a function in every process; if it fails in one of them, all of them raise.

    Raises:
        Exception: What `act` raised in the first process in which it did.
    """
    if process_count() == 1:
        return act()
    value, error = _tried(act)
    first = next((one for one in gather_from_all(error) if one is not None), None)
    if first is not None:
        raise _marked(first) from error
    return value


def local_rank_zero_first(act: Callable[[], T]) -> T:
    """Run a function in one process of each machine, then in the others, which find its files.

    Raises:
        Exception: What `act` raised in the first process in which it did.
    """
    if process_count() == 1:
        return act()
    leads = is_local_rank_zero()
    leading = all_agree(lambda: act() if leads else None)
    following = all_agree(lambda: None if leads else act())
    return leading if leads else following  # type: ignore[return-value]


def broadcast_from_local_rank_zero(value: Any) -> Any:
    """Return in each process what the first one on its machine has given."""
    if process_count() == 1:
        return value
    # Launchers number the processes of a machine one after the other.
    first = process_rank() - int(os.environ.get("LOCAL_RANK", "0"))
    return gather_from_all(value)[first]


def wait_for_all() -> None:
    """Wait until every process has come here."""
    if process_count() > 1:
        distributed.barrier(group=_group)


def gather_from_all(value: T) -> list[T]:
    """Return what each process has given, in the order of the processes."""
    if process_count() == 1:
        return [value]
    gathered: list[Any] = [None] * process_count()
    distributed.all_gather_object(gathered, value, group=_group)
    return gathered


def max_over_processes(value: int) -> int:
    """Return the largest of the integers that the processes have given after a step."""
    if process_count() == 1:
        return value
    largest = torch.tensor(value)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX, group=_step_group)
    return int(largest)


def _tried(act: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return act(), None
    except Exception as error:
        return None, _as_pickled(error)


def _as_pickled(error: Exception) -> Exception:
    """Return an error that arrives in another process as it left here."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _marked(error: Exception) -> Exception:
    setattr(error, _AGREED, True)
    return error


# ---- failing ----


def should_report_error(error: BaseException) -> bool:
    """Whether this process is the one to show an error to the user; true of one process alone.

    What all raise, the main process tells. What one raises by itself, it tells itself, if it is
    the first: the others fail because it has left them.
    """
    if process_count() == 1:
        return True
    if getattr(error, _AGREED, False):
        return is_main()
    try:
        store = distributed.distributed_c10d._get_default_store()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"lorakit/told/{attempt}", 1) == 1
    except (RuntimeError, ValueError):  # it went away with the process that kept it
        return is_main()


class Terminated(SystemExit):
    """The launcher ends this process, since another one has failed."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


@contextmanager
def failing_together() -> Iterator[None]:
    """Inside the block, say so where another process has gone; and let SIGTERM unwind the stack.

    The program's handler of SIGTERM, if it has one, stays.

    Raises:
        Terminated: The launcher ended this process.
        TrainingError: A process that this one waited for is not there any more.
    """
    if process_count() == 1:
        yield
        return
    with _signal_raises(signal.SIGTERM):
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, LorakitError) or not _is_about_another(error):
                raise
            raise TrainingError(_about_another(error)) from error


def _about_another(error: RuntimeError) -> str:
    me = f"Process {process_rank()} of {process_count()}"
    reason = str(error).strip().splitlines()[0]
    if _TIMED_OUT.search(reason):
        return (
            f"{me} waited for another that did not come: it hangs, or its step takes longer than "
            "training.ddp_timeout allows. Look at what that process does, or raise "
            f"training.ddp_timeout (seconds). ({reason})"
        )
    return (
        f"{me} lost the others: one of them ended, or the network between them did. The first "
        f"error above, or in the log of that process, says why. ({reason})"
    )


def _is_about_another(error: RuntimeError) -> bool:
    lost = ("gloo", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in lost)


@contextmanager
def _signal_raises(number: signal.Signals) -> Iterator[None]:
    is_taken = signal.getsignal(number) != signal.SIG_DFL
    if is_taken or threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(received: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(number, leave)
    try:
        yield
    finally:
        signal.signal(number, before)

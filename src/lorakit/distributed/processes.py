"""Process groups and collectives for training one adapter in several processes.

A launcher (torchrun, accelerate launch, Ray Train) runs the same program several times. Only the
main process reads and writes the run directory; it broadcasts what it finds. Where any process may
fail, all of them raise the first error, so that none waits for a process that has exited.
"""

from __future__ import annotations

import os
import pickle
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from lorakit.distributed.launcher import (
    launched_processes,
    launched_rank,
    require_launcher_variables,
)
from lorakit.errors import ClusterError, LorakitError, TrainingError

T = TypeVar("T")

TERMINATED = 143
"""Exit code of a process that SIGTERM ended, as the shell reports it."""

_SETUP_TIMEOUT = timedelta(days=1)
"""How long processes wait for one that loads a model or tokenizes examples."""

_STEP_TIMEOUT_S = 1800
"""How long a process waits for another within a step unless training.ddp_timeout is set; the
default of transformers."""

_TIMED_OUT = re.compile(r"[Tt]imed out waiting|[Tt]imeout|Application timeout")

_RAISED_BY_ALL = "_is_raised_by_all"
"""Attribute of an error that every process raises."""

_group: Any = None
_step_group: Any = None


# ---- process groups ----


def process_count() -> int:
    """Return the number of processes that train together, 1 without a launcher."""
    return distributed.get_world_size() if _is_initialized() else 1


def process_rank() -> int:
    """Return the rank of this process, from 0."""
    return distributed.get_rank() if _is_initialized() else 0


def is_main_process() -> bool:
    """Whether this process writes files and reports to the user: rank 0."""
    return process_rank() == 0


def is_local_rank_zero() -> bool:
    """Whether this process is the first on its machine."""
    return process_count() == 1 or int(os.environ.get("LOCAL_RANK", "0")) == 0


def init_process_groups(use_cpu: bool | None = None, timeout_s: int | None = None) -> None:
    """Initialize torch.distributed if a launcher has started several processes.

    Does nothing in a single process, or when called again.

    Args:
        use_cpu: Whether to train on the CPU; None does so if there is no accelerator.
        timeout_s: How long to wait for another process within a step, `training.ddp_timeout`; None
            is half an hour. A default process group that the launcher made keeps its own timeout.

    Raises:
        ClusterError: The processes cannot find each other.
    """
    global _group, _step_group
    timeout = timedelta(seconds=timeout_s or _STEP_TIMEOUT_S)
    if not _is_initialized():
        require_launcher_variables()
        if launched_processes() == 1:
            return
        from accelerate import PartialState

        cpu = not torch.accelerator.is_available() if use_cpu is None else use_cpu
        try:
            PartialState(cpu=cpu, timeout=timeout)
        except distributed.DistError as error:
            raise ClusterError(_not_met_message(error)) from error
    if _group is None and process_count() > 1:
        # Separate groups: they run on the CPU, and the first waits longer than a step may take.
        _group = distributed.new_group(backend="gloo", timeout=_SETUP_TIMEOUT)
        _step_group = distributed.new_group(backend="gloo", timeout=timeout)


def _not_met_message(error: Exception) -> str:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return (
        f"Process {launched_rank()} of {launched_processes()} cannot meet the others at {address}, "
        f"as MASTER_ADDR and MASTER_PORT say: {' '.join(str(error).split())} Use a free port of "
        "the machine where process 0 runs, and see that all processes have started."
    )


def destroy_process_groups() -> None:
    """Leave all process groups at the end of a program."""
    global _group, _step_group
    if _is_initialized():
        distributed.destroy_process_group()
    _group = _step_group = None


def _is_initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()


# ---- collectives ----


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, on its device; each process calls this."""
    if process_count() == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total


def run_on_main(function: Callable[[], T]) -> T:
    """Run a function in the main process and broadcast its result to every process.

    Args:
        function: The function; its result can be pickled.

    Raises:
        Exception: The error of `function`, raised in every process.
    """
    if process_count() == 1:
        return function()
    outcome: list[Any] = [_try(function) if is_main_process() else None]
    distributed.broadcast_object_list(outcome, src=0, group=_group)
    value, error = outcome[0]
    if error is not None:
        raise _mark_raised_by_all(error)
    return value


def run_on_all(function: Callable[[], T]) -> T:
    """Run a function in every process; if it fails in one, every process raises.

    Raises:
        Exception: The error of the lowest rank in which `function` failed.
    """
    if process_count() == 1:
        return function()
    value, error = _try(function)
    first = next((one for one in all_gather_object(error) if one is not None), None)
    if first is not None:
        raise _mark_raised_by_all(first) from error
    return value


def local_rank_zero_first(function: Callable[[], T]) -> T:
    """Run a function in one process per machine, then in the others, which find its files.

    Raises:
        Exception: The error of the lowest rank in which `function` failed.
    """
    if process_count() == 1:
        return function()
    leads = is_local_rank_zero()
    leading = run_on_all(lambda: function() if leads else None)
    following = run_on_all(lambda: None if leads else function())
    return leading if leads else following  # type: ignore[return-value]  # the one that has run


def broadcast_from_local_rank_zero(value: Any) -> Any:
    """Return the value of the first process on this machine."""
    if process_count() == 1:
        return value
    # Launchers give the processes of a machine consecutive ranks.
    first = process_rank() - int(os.environ.get("LOCAL_RANK", "0"))
    return all_gather_object(value)[first]


def barrier() -> None:
    """Wait until every process has called this."""
    if process_count() > 1:
        distributed.barrier(group=_group)


def all_gather_object(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks."""
    if process_count() == 1:
        return [value]
    gathered: list[Any] = [None] * process_count()
    distributed.all_gather_object(gathered, value, group=_group)
    return gathered


def all_reduce_max(values: Sequence[int]) -> list[int]:
    """Return the largest of each integer of all processes, within a step.

    Args:
        values: As many in every process.
    """
    if process_count() == 1:
        return list(values)
    largest = torch.tensor(values)
    distributed.all_reduce(largest, distributed.ReduceOp.MAX, group=_step_group)
    return largest.tolist()


def _try(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return function(), None
    except Exception as error:
        return None, _picklable(error)


def _picklable(error: Exception) -> Exception:
    """Return the error, or a RuntimeError with its text if it cannot be sent to a process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _mark_raised_by_all(error: Exception) -> Exception:
    setattr(error, _RAISED_BY_ALL, True)
    return error


# ---- failures ----


def should_report_error(error: BaseException) -> bool:
    """Whether this process shows an error to the user; true in exactly one process.

    The main process reports an error that all processes raise. Otherwise the first process to fail
    reports: the others fail because it has exited.
    """
    if process_count() == 1:
        return True
    if getattr(error, _RAISED_BY_ALL, False):
        return is_main_process()
    try:
        store = distributed.distributed_c10d._get_default_store()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return store.add(f"lorakit/reported/{attempt}", 1) == 1
    except (RuntimeError, ValueError):  # the process that hosts the store has exited
        return is_main_process()


class Terminated(SystemExit):
    """The launcher ends this process because another one has failed."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


@contextmanager
def translating_process_failures() -> Iterator[None]:
    """Turn the loss of another process into a TrainingError, and SIGTERM into an exception.

    A SIGTERM handler of the program, if it has one, stays in place.

    Raises:
        Terminated: The launcher ended this process.
        TrainingError: A process that this one waited for has exited or hangs.
    """
    if process_count() == 1:
        yield
        return
    with _raising_on_signal(signal.SIGTERM):
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, LorakitError) or not _is_lost_process(error):
                raise
            raise TrainingError(_lost_process_message(error)) from error


def _lost_process_message(error: RuntimeError) -> str:
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


def _is_lost_process(error: RuntimeError) -> bool:
    lost = ("gloo", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, distributed.DistError) or any(word in str(error) for word in lost)


@contextmanager
def _raising_on_signal(number: signal.Signals) -> Iterator[None]:
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

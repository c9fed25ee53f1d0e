"""What one process does, and what each of two does about the other's failures."""

import os
import signal

import pytest
import torch

from lorakit.distributed import processes
from lorakit.distributed.processes import (
    Terminated,
    all_gather_object,
    all_reduce_max,
    broadcast_from_local_rank_zero,
    init_process_groups,
    is_local_rank_zero,
    local_rank_zero_first,
    run_on_all,
    run_on_main,
    should_report_error,
    translating_process_failures,
)
from lorakit.errors import DataError, TrainingError


class UnpicklableError(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


@pytest.fixture
def second(monkeypatch):
    """Makes this the second of two processes; returns what the first contributes, in order."""
    first = []
    monkeypatch.setattr(processes, "process_count", lambda: 2)
    monkeypatch.setattr(processes, "process_rank", lambda: 1)
    monkeypatch.setattr(processes, "all_gather_object", lambda value: [first.pop(0), value])
    monkeypatch.setenv("LOCAL_RANK", "1")
    return first


def test_one_process_runs_everything_itself():
    init_process_groups()  # no launcher has started others
    assert [run(lambda: 3) for run in (run_on_main, run_on_all, local_rank_zero_first)] == [3] * 3
    assert (broadcast_from_local_rank_zero("a"), all_gather_object(4)) == ("a", [4])
    assert all_reduce_max(5) == 5 and is_local_rank_zero() and should_report_error(ValueError())
    with pytest.raises(RuntimeError, match="gloo"), translating_process_failures():
        raise RuntimeError("gloo: there is nobody to lose")


def test_the_error_of_the_lowest_rank_is_raised_by_all_and_reported_by_the_first(second):
    second.append(DataError("of the first"))
    with pytest.raises(DataError, match="of the first") as caught:
        run_on_all(lambda: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not should_report_error(caught.value)
    second.append(None)
    with pytest.raises(RuntimeError, match="UnpicklableError: 1 and 2"):
        run_on_all(lambda: (_ for _ in ()).throw(UnpicklableError(1, 2)))
    second.append(None)
    assert run_on_all(lambda: 7) == 7


def test_the_error_of_the_main_process_arrives_in_the_others(second, monkeypatch):
    def broadcast(outcome, src, group):
        outcome[0] = (None, DataError("it is empty"))

    monkeypatch.setattr(processes.distributed, "broadcast_object_list", broadcast)
    with pytest.raises(DataError, match="it is empty"):
        run_on_main(lambda: pytest.fail("only the main process runs it"))


def test_others_on_a_machine_run_after_the_first(second):
    second += [None, None, "from the first"]
    calls = []
    assert local_rank_zero_first(lambda: calls.append("here") or "made") == "made"
    assert calls == ["here"]
    assert broadcast_from_local_rank_zero("mine") == "from the first"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("[gloo] Connection closed by peer"), "Process 1 of 2 lost the others: one"),
        (torch.distributed.DistBackendError("x"), "Process 1 of 2 lost the others"),
        (RuntimeError("gloo: Timed out waiting 2s\nmore"), r"raise training.ddp_timeout .*2s\)$"),
    ],
)
def test_a_lost_process_is_a_training_error(second, error, said):
    with pytest.raises(TrainingError, match=said) as caught, translating_process_failures():
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), TrainingError("gloo is a word")])
def test_other_errors_pass(second, error):
    with pytest.raises(type(error)) as caught, translating_process_failures():
        raise error
    assert caught.value is error


def test_sigterm_ends_a_process_among_several_as_the_shell_reports_it(second):
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(Terminated) as caught, translating_process_failures():
            os.kill(os.getpid(), signal.SIGTERM)
        assert caught.value.code == 143
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a handler of the program stays
        with translating_process_failures():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)

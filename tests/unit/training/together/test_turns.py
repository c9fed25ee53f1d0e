"""Threads that take turns: one at a time, each with the process's state as it has left it."""

import random
import threading

import pytest
import torch

from lorakit.training.together import turns as turns_module
from lorakit.training.together.turns import Turn, Turns


def run(*works, serve=None):
    """Run works to their ends; each gets a function that asks. Return the turns and requests."""
    served = []

    def answer(turns):
        served.append([turn.request for turn in turns])
        for turn in turns:
            turn.succeed(turn.request)

    turns = Turns(serve or answer)
    made = []
    for number, work in enumerate(works):
        turn = Turn(str(number), lambda: None)
        turn._work = lambda work=work, turn=turn: work(lambda request: turns.ask(turn, request))
        made.append(turn)
    turns.start(*made)
    for turn in made:
        assert turn.is_over.wait(10)
    return made, served


def test_all_wait_before_a_request_is_served():
    def work(ask):
        return [ask(1), ask(2)]

    turns, served = run(work, work, work)
    assert [turn.result for turn in turns] == [[1, 2]] * 3
    assert served == [[1] * 3, [2] * 3]


def test_one_runs_at_a_time():
    running = []

    def work(ask):
        for _ in range(5):
            running.append(threading.current_thread().name)
            assert len(running) == 1
            running.pop()
            ask(None if False else 0)

    turns, _ = run(work, work, work)
    assert [turn.error for turn in turns] == [None] * 3


@pytest.mark.parametrize("does_little", [True, False])
def test_a_run_that_computes_alone_gives_its_memory_back(monkeypatch, does_little):
    given = []
    monkeypatch.setattr(turns_module, "return_freed_memory", lambda: given.append(turn.name))
    turns = Turns(lambda waiting: waiting[0].succeed(None))
    turn = Turn("run", lambda: turns.ask(turn, 0))
    turn.does_little = does_little
    turns.start(turn)
    assert turn.is_over.wait(10) and turn.error is None
    assert given == ([] if does_little else ["run"])


def test_each_draws_the_numbers_it_draws_alone():
    def work(ask):
        torch.manual_seed(3)
        random.seed(3)
        drawn = []
        for _ in range(4):
            drawn.append((torch.rand(()).item(), random.random()))
            ask(0)
        return drawn

    torch.manual_seed(0)
    before = torch.get_rng_state()
    (alone,), _ = run(work)
    turns, _ = run(work, work)
    assert [turn.result for turn in turns] == [alone.result] * 2
    assert torch.equal(torch.get_rng_state(), before), "the caller's state is as before"


def test_those_that_end_or_fail_are_not_waited_for():
    def fails(ask):
        ask(0)
        raise ValueError("mine")

    def goes_on(ask):
        return [ask(n) for n in range(4)]

    turns, served = run(goes_on, fails, lambda ask: None)
    assert turns[0].result == [0, 1, 2, 3]
    assert str(turns[1].error) == "mine" and turns[2].error is None
    assert [len(requests) for requests in served] == [2, 1, 1, 1]


def answer_with_an_error(turns):
    turns[0].fail(ValueError("not served"))


def fail_to_serve(turns):
    raise ValueError("not served")


@pytest.mark.parametrize("serve", [answer_with_an_error, fail_to_serve])
def test_an_error_reaches_those_who_wait_in_their_threads(serve):
    def work(ask):
        with pytest.raises(ValueError, match="not served"):
            ask(0)
        return "after"

    turns, _ = run(work, work, serve=serve)
    assert [turn.result for turn in turns] == ["after"] * 2


def test_one_thread_serves_all_requests(monkeypatch):
    """It keeps its OpenMP threads, so that products need not wait for new ones."""
    threads, on_device = [], []
    monkeypatch.setattr(
        turns_module.ProcessState,
        "use_device",
        lambda self: on_device.append(threading.current_thread()),
    )

    def serve(turns):
        threads.append(threading.current_thread())
        for turn in turns:
            turn.succeed(None)

    def work(ask):
        ask(0)
        ask(1)
        return threading.current_thread()

    turns, _ = run(work, work, serve=serve)
    assert len(threads) == 2 and len({*threads, *(turn.result for turn in turns)}) == 3
    assert threads[0] in on_device, "it computes on the GPU of those that it serves"
    assert not threads[0].is_alive(), "it has ended with the last of those that it serves"


def test_one_may_join_while_others_run():
    joined = []

    def serve(turns):
        for turn in turns:
            turn.succeed(len(turns))

    turns = Turns(serve)

    def work(ask):
        found = []
        for step in range(3):
            if step == 1 and not joined:
                joined.append(Turn("late", lambda: late(lambda r: turns.ask(joined[0], r))))
                turns.start(joined[0])
            found.append(ask(step))
        return found

    def late(ask):
        return [ask(0), ask(1), ask(2)]

    first = Turn("first", lambda: work(lambda r: turns.ask(first, r)))
    turns.start(first)
    assert first.is_over.wait(10) and joined[0].is_over.wait(10)
    assert first.result == [1, 2, 2] and joined[0].result == [2, 2, 1]


@pytest.fixture
def ended(monkeypatch):
    """The threads that give their OpenMP threads back, in order."""
    names = []
    end = lambda: names.append(threading.current_thread().name)  # noqa: E731
    monkeypatch.setattr(turns_module.openmp, "end_waiting_threads", end)
    return names


def test_a_thread_that_waits_keeps_no_threads_that_compute(ended):
    run(lambda ask: ask(1), lambda ask: ask(1))
    assert ended[0] == threading.current_thread().name
    assert {"0", "1"} <= set(ended), "each when it passes its turn on or is over"
    assert "server of turns" in ended[:-1], "those that were served may need all processors"


def test_the_server_keeps_them_if_all_others_do_little(ended, monkeypatch):
    counts = {}
    monkeypatch.setattr(
        turns_module.openmp,
        "compute_with",
        lambda count: counts.setdefault(threading.current_thread().name, []).append(count),
    )

    def serve(turns):
        ended.clear()
        for turn in turns:
            turn.succeed(None)

    turns = Turns(serve)
    served_with = []

    def work(turn):
        turn.do_little(True)
        turns.ask(turn, 0)
        turns.ask(turn, 1)
        served_with.extend(ended)
        turn.do_little(False)

    made = [Turn(name, lambda number=n: work(made[number])) for n, name in enumerate("ab")]
    turns.start(*made)
    assert all(turn.is_over.wait(10) and turn.error is None for turn in made)
    assert "server of turns" not in served_with
    threads = torch.get_num_threads()
    assert counts == {"a": [1, threads], "b": [1, threads]}

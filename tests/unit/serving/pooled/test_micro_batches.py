import threading
from concurrent.futures import Future
from dataclasses import dataclass

import pytest

from lorakit.errors import EngineStoppedError
from lorakit.serving.pooled.micro_batches import MicroBatches, ModelThread
from lorakit.serving.refusals import RequestError


@dataclass(frozen=True)
class Item:
    value: int
    batch_key: str = "a"
    tokens: int = 1


class Turns:
    """Runs functions when the test says so."""

    def __init__(self):
        self.functions = []

    def between_steps(self, function):
        self.functions.append(function)
        return Future()

    def run(self, turns=1):
        for _ in range(turns):
            self.functions.pop(0)()


@pytest.fixture
def made():
    turns, ran = Turns(), []

    def run(items):
        ran.append([item.value for item in items])
        if any(item.value < 0 for item in items):
            raise ValueError("negative")
        return [10 * item.value for item in items]

    return turns, ran, lambda **options: MicroBatches(run, turns.between_steps, **options)


def test_what_waits_together_runs_together(made):
    turns, ran, create = made
    batches = create()
    first = batches.submit([Item(1)])
    others = batches.submit([Item(2), Item(3)])
    assert len(turns.functions) == 1 and batches.waiting == 3
    turns.run()
    assert ran == [[1, 2, 3]]
    assert [future.result() for future in (*first, *others)] == [10, 20, 30]
    assert not turns.functions


def test_items_of_another_kind_have_their_turn(made):
    turns, ran, create = made
    create().submit([Item(1), Item(2, "b"), Item(3)])
    turns.run(2)
    assert ran == [[1, 3], [2]]


def test_a_batch_is_bounded_in_rows_and_padded_tokens(made):
    turns, ran, create = made
    create(most_rows=2).submit([Item(1), Item(2), Item(3)])
    turns.run(2)
    create(most_tokens=6).submit([Item(4, tokens=2), Item(5, tokens=3), Item(6, tokens=9)])
    turns.run(2)
    assert ran == [[1, 2], [3], [4, 5], [6]]


def test_an_item_that_fails_does_not_fail_its_neighbours(made):
    turns, _, create = made
    good, bad, other = create().submit([Item(1), Item(-1), Item(2)])
    turns.run()
    assert (good.result(), other.result()) == (10, 20)
    with pytest.raises(ValueError, match="negative"):
        bad.result()


def test_what_was_cancelled_is_not_computed(made):
    turns, ran, create = made
    first, second = create().submit([Item(1), Item(2)])
    assert first.cancel()
    turns.run()
    assert ran == [[2]] and second.result() == 20


def test_all_may_be_cancelled(made):
    turns, ran, create = made
    batches = create()
    (only,) = batches.submit([Item(1)])
    only.cancel()
    turns.run()
    assert ran == []
    (again,) = batches.submit([Item(2)])
    turns.run()
    assert again.result() == 20


def test_a_model_that_has_ended_keeps_nobody_waiting():
    ended: Future[None] = Future()
    ended.set_exception(ValueError("ended"))

    def has_no_thread(_):
        raise RuntimeError("ended")

    for between_steps in (lambda _: ended, has_no_thread):
        batches = MicroBatches(list, between_steps)
        for _ in range(2):
            (waiting,) = batches.submit([Item(1)])
            with pytest.raises((ValueError, EngineStoppedError), match=r"ended|is stopping"):
                waiting.result(timeout=1)


def test_more_than_may_wait_are_refused_and_none_of_them_taken(made):
    _, _, create = made
    batches = create(most_waiting=2)
    batches.submit([Item(1)])
    with pytest.raises(RequestError, match="got 1 and 2 more, expected at most 2") as caught:
        batches.submit([Item(2), Item(3)])
    assert caught.value.status == 429
    assert batches.waiting == 1


def test_functions_run_one_after_the_other_in_one_thread():
    thread = ModelThread("model")
    names = [thread.between_steps(lambda: threading.current_thread().name) for _ in range(3)]
    assert {future.result() for future in names} == {"model_0"}
    thread.stop()


def test_what_waits_is_finished_or_given_up():
    started, go_on = threading.Event(), threading.Event()
    for finish in (True, False):
        thread = ModelThread("model")
        started.clear(), go_on.clear()
        running = thread.between_steps(lambda: (started.set(), go_on.wait()))
        waiting = thread.between_steps(lambda: 1)
        started.wait()
        stopping = threading.Thread(target=thread.stop, kwargs={"finish_running": finish})
        stopping.start()
        while not finish and not waiting.cancelled():
            pass
        go_on.set()
        stopping.join()
        assert running.done()
        assert waiting.cancelled() is not finish

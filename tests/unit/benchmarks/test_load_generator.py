import dataclasses
import time

import pytest
from benchmarks.load_generator import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    Answered,
    Load,
    Work,
    arrival_times_s,
    closed_loop,
    mixed_work,
    open_loop,
)

from fixtures.engines import alone, request_of, running, tiny_llama

WORK = [Work((5, 6, 7), 6), Work((8, 9), 3), Work((4,), 4), Work((11, 12), 5)]


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


def expected(model):
    return [alone(model, request_of(one.prompt, None, one.new_tokens)) for one in WORK]


def test_work_has_the_lengths_of_the_lists_and_its_adapters_in_turn():
    work = mixed_work(50, 40, ("a", "b"))
    assert {len(one.prompt) for one in work} == set(PROMPT_TOKENS)
    assert {one.new_tokens for one in work} == set(NEW_TOKENS)
    assert [one.adapter for one in work[:4]] == ["a", "b", "a", "b"]
    assert work == mixed_work(50, 40, ("a", "b"))
    assert work != mixed_work(50, 40, ("a", "b"), seed=2)
    assert all(3 <= token < 50 for one in work for token in one.prompt)


def test_times_between_arrivals_vary_as_in_a_poisson_process():
    times = arrival_times_s(4000, 2.0)
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.5, rel=0.05)
    assert deviation == pytest.approx(0.5, rel=0.1)  # of an exponential distribution


def test_an_open_loop_submits_without_waiting_and_notes_the_times(model):
    with running(model) as engine:
        load = open_loop(engine, WORK, 200.0)
    assert [one.tokens for one in load.answered] == expected(model)
    began = [one.arrived_s - load.began_s for one in load.answered]
    assert began == pytest.approx(arrival_times_s(len(WORK), 200.0))
    for one in load.answered:
        assert one.arrived_s < one.token_s[0] <= one.token_s[-1] <= one.ended_s


def test_a_late_submission_counts_from_its_moment(model):
    with running(model) as engine:
        engine.between_steps(lambda: time.sleep(0.2))
        load = open_loop(engine, WORK[:1], 1000.0)
    assert load.first_token_s(50) > 0.15


def test_a_closed_loop_has_so_many_requests_under_way(model):
    with running(model) as engine:
        load = closed_loop(engine, WORK, 2)
    assert [one.tokens for one in load.answered] == expected(model)
    events = sorted(
        [(one.arrived_s, 1) for one in load.answered] + [(one.ended_s, -1) for one in load.answered]
    )
    at_once = 0
    for _, change in events:
        at_once += change
        assert at_once <= 2


def test_a_failed_request_ends_the_measurement(model):
    with running(model) as engine:
        call = engine.submit

        def stopping(request, deliver):
            handle = call(request, deliver)
            engine.stop(finish_running=False)
            return handle

        engine.submit = stopping
        with pytest.raises(RuntimeError, match="stopping"):
            open_loop(engine, [Work((5,), 200)], 1000.0)


def test_figures_of_a_load():
    first = Answered(10.0, [10.5, 10.6, 10.9], [1, 2, 3], 11.0)
    second = dataclasses.replace(first, arrived_s=10.25, token_s=[10.5], tokens=[1], ended_s=12.0)
    load = Load([first, second], 10.0)
    assert (load.seconds, load.tokens_per_s) == (2.0, 2.0)
    assert load.mean_in_flight == (1.0 + 1.75) / 2
    assert (load.first_token_s(50), load.first_token_s(95)) == (0.25, 0.5)
    assert load.between_tokens_s(50) == pytest.approx(0.1)
    assert load.between_tokens_s(99) == pytest.approx(0.3)
    assert load.without_first(1).answered == [second]
    third = dataclasses.replace(first, arrived_s=10.75, token_s=[11.9])
    # Three tokens have come when the last request arrives: two of the first, one of the second.
    assert Load([first, second, third], 10.0).steady_tokens_per_s == pytest.approx(3 / 0.75)

import gc

import pytest
from benchmarks.measure import interleaved, quantiles, repeated


def test_quantiles_are_interpolated_whatever_the_order():
    assert quantiles([11.0, 1.0, 6.0, 3.0, 9.0, 8.0]) == (3.0, 7.0, 9.0)
    assert quantiles([4.0, 0.0]) == pytest.approx((0.8, 2.0, 3.2))
    assert quantiles([5.0]) == (5.0, 5.0, 5.0)


def test_variants_take_turns_and_each_comes_first_in_turn():
    order = []

    def sample(name):
        def run(watch):
            order.append(name)
            watch.start()
            watch.lap("time")

        return run

    timings = interleaved({name: sample(name) for name in "abc"}, rounds=3, warmup=1)
    assert "".join(order) == "abcbcacababc"
    assert [len(timings.of(name)) for name in "abc"] == [3, 3, 3]  # warm-up does not count


def test_what_comes_before_the_start_is_not_timed(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))

    def sample(watch):  # the watch was started once when it was made
        watch.start()
        watch.lap("forward")
        watch.lap("both", times=2)

    timings = interleaved({"a": sample}, rounds=1, warmup=0)
    assert timings.by_variant("forward") == {"a": [1.0]}
    assert timings.by_variant("both") == {"a": [1.0]}


def test_repeated_work_gives_the_time_of_one(monkeypatch):
    clock = iter((0.0, 1.0, 9.0))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    calls = []
    timings = interleaved({"a": repeated(lambda: calls.append(1), 4)}, rounds=1, warmup=0)
    assert timings.of("a") == [2.0]
    assert len(calls) == 4


def test_the_garbage_collector_is_left_as_it_was_found():
    def fail(_watch):
        assert not gc.isenabled()
        raise RuntimeError("broken sample")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="broken sample"):
        interleaved({"a": fail}, rounds=1)
    assert gc.isenabled()

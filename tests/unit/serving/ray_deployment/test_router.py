"""Where a request for an adapter goes, with replicas that only say what they have."""

import asyncio
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, of pydantic


def replica(name, *adapters):
    return SimpleNamespace(replica_id=name, routing_stats={"adapters": list(adapters)})


def request(adapter, number=0):
    metadata = SimpleNamespace(multiplexed_model_id=adapter, internal_request_id=str(number))
    return SimpleNamespace(metadata=metadata)


@pytest.fixture
def router():
    from lorakit.serving.ray_deployment.router import AdapterRouter

    made = AdapterRouter.__new__(AdapterRouter)
    made.initialize_state(full_batch=4)
    made._replicas = dict.fromkeys("abc")
    return made


def run(router, **loads):
    """Let each replica have so many requests."""
    router._running = {
        f"{name}-{number}": (name, float("inf"))
        for name, count in loads.items()
        for number in range(count)
    }


def choose(router, replicas, pending):
    (best, others) = asyncio.run(router.choose_replicas(replicas, pending))
    assert {id(one) for one in (*best, *others)} == {id(one) for one in replicas}
    (chosen,) = best
    return chosen.replica_id


def route(router, replicas, adapter):
    """Return the replica that one request goes to, which then runs no more."""
    chosen = choose(router, replicas, request(adapter))
    router.on_request_completed(chosen, "0")
    return chosen


def test_the_least_loaded_of_those_that_have_the_adapter_is_chosen(router):
    replicas = [replica("a"), replica("b", "german"), replica("c", "german", "french")]
    run(router, b=3, c=2)
    assert route(router, replicas, "german") == "c"
    run(router, b=2, c=2)
    assert route(router, replicas, "german") == "b"  # it has fewer adapters


def test_another_loads_it_too_when_each_has_a_full_batch(router):
    replicas = [replica("a", "german"), replica("b", "french", "dutch"), replica("c", "french")]
    run(router, a=4)
    assert route(router, replicas, "german") == "c"
    run(router, a=3)
    assert route(router, replicas, "german") == "a"


@pytest.mark.parametrize("adapter", ["", "unknown"])
def test_all_are_alike_for_the_base_and_for_an_adapter_that_none_has(router, adapter):
    replicas = [replica("a", "german"), replica("b")]
    assert route(router, replicas, adapter) == "b"
    run(router, b=1)
    assert route(router, replicas, adapter) == "a"


def test_requests_that_come_together_count_before_they_are_sent(router, monkeypatch):
    from lorakit.serving.ray_deployment import router as module

    replicas = [replica("a", "german"), replica("b"), replica("c")]
    burst = [request("german", number) for number in range(10)]
    chosen = [choose(router, replicas, pending) for pending in burst]
    assert [chosen.count(name) for name in "abc"] == [4, 3, 3]
    router.on_request_routed(burst[0], "a", None)
    router.on_request_completed("b", "0")  # an earlier try, which ended after the next began
    assert router._loads() == {"a": 4, "b": 3, "c": 3}
    now = module.time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 60)
    assert router._loads() == {"a": 1}  # the others were never sent
    router.on_request_completed("a", "0")
    router.on_request_completed("a", "0")
    assert not router._loads()


def test_requests_of_a_replica_that_is_gone_count_no_more(router):
    run(router, a=2, b=1)
    del router._replicas["a"]
    assert router._loads() == {"b": 1}


def test_one_that_was_sent_a_request_counts_as_having_it_until_it_says_so(router, monkeypatch):
    from lorakit.serving.ray_deployment import router as module

    replicas = [replica("a"), replica("b")]
    router.on_request_routed(request("german"), "b", None)
    router.on_request_routed(request(""), "a", None)
    assert route(router, replicas, "german") == "b"
    now = module.time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 60)
    assert route(router, replicas, "german") == "a"
    router.on_request_routed(request("french"), "a", None)
    assert list(router._sent) == [("french", "a")]


def test_nothing_to_choose_from(router):
    assert asyncio.run(router.choose_replicas([], request("german"))) == [[]]

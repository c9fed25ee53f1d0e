"""Where a request for an adapter goes, with replicas that only say what they have."""

import asyncio
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's, of pydantic


def replica(name, *adapters):
    return SimpleNamespace(replica_id=name, routing_stats={"adapters": list(adapters)})


def request(adapter):
    return SimpleNamespace(metadata=SimpleNamespace(multiplexed_model_id=adapter))


@pytest.fixture
def router():
    from lorakit.serving.ray_deployment.router import AdapterRouter

    made = AdapterRouter.__new__(AdapterRouter)
    made.initialize_state(full_batch=4)
    made.loads = {}
    made._replica_queue_len_cache = made.loads
    return made


def chosen(router, replicas, adapter):
    pending = None if adapter is None else request(adapter)
    (best,) = asyncio.run(router.choose_replicas(replicas, pending))
    return [each.replica_id for each in best]


def test_those_that_have_the_adapter_are_preferred(router):
    replicas = [replica("a", "french"), replica("b", "german"), replica("c", "german", "french")]
    router.loads |= {"b": 3}
    assert chosen(router, replicas, "german") == ["b", "c"]


def test_others_load_it_too_when_each_has_a_full_batch(router):
    replicas = [replica("a", "german"), replica("b", "french", "dutch"), replica("c", "french")]
    router.loads |= {"a": 4}
    assert chosen(router, replicas, "german") == ["a", "c", "b"]  # the fewest adapters first
    router.loads |= {"a": 3}
    assert chosen(router, replicas, "german") == ["a"]


@pytest.mark.parametrize("adapter", ["", None, "unknown"])
def test_all_are_alike_for_the_base_and_for_an_adapter_that_none_has(router, adapter):
    replicas = [replica("a", "german"), replica("b")]
    assert chosen(router, replicas, adapter) == ["b", "a"]


def test_one_that_was_sent_a_request_counts_as_having_it_until_it_says_so(router, monkeypatch):
    from lorakit.serving.ray_deployment import router as module

    replicas = [replica("a"), replica("b")]
    router.on_request_routed(request("german"), "b", None)
    router.on_request_routed(request(""), "a", None)
    assert chosen(router, replicas, "german") == ["b"]
    now = module.time.monotonic()
    monkeypatch.setattr(module.time, "monotonic", lambda: now + 60)
    assert chosen(router, replicas, "german") == ["a", "b"]
    router.on_request_routed(request("french"), "a", None)
    assert list(router._sent) == [("french", "a")]

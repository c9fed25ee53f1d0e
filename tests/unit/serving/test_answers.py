import asyncio
import threading
from types import SimpleNamespace

import pytest

from lorakit.serving.answers import Answers, SharedLease
from lorakit.serving.requests import Failed, Finished, GenerationRequest, NewText, Sampling

REQUEST = GenerationRequest((1,), "german@1", "hash", Sampling(max_tokens=2))
END = Finished("stop", 1, 0, 2)


class Lease:
    carried_name, content_hash = "german@1", "hash"

    def __init__(self):
        self.releases = 0

    def release(self):
        self.releases += 1


class Engine:
    """Delivers what it is told to, from another thread."""

    def __init__(self, events, is_full=False):
        self.events, self.is_full = events, is_full
        self.cancelled = []

    def submit(self, request, deliver):
        if self.is_full:
            raise ValueError("full")
        handle = SimpleNamespace(is_over=False)
        threading.Thread(target=lambda: [deliver(event) for event in self.events]).start()
        return handle

    def cancel(self, handle):
        self.cancelled.append(handle)


def test_events_come_with_the_number_of_their_answer():
    lease = Lease()

    async def collect():
        shared = SharedLease(lease)
        answers = Answers(Engine([NewText((5,), "a"), END]), shared)
        for _ in range(2):
            answers.ask(REQUEST)
        shared.drop()
        return [pair async for pair in answers.events()]

    found = asyncio.run(collect())
    for number in range(2):
        assert [event for index, event in found if index == number] == [NewText((5,), "a"), END]
    assert lease.releases == 1


def test_a_failure_is_raised_and_the_rest_can_be_given_up():
    lease, engine = Lease(), Engine([Failed(ValueError("broken"))])

    async def collect():
        shared = SharedLease(lease)
        answers = Answers(engine, shared)
        answers.ask(REQUEST)
        with pytest.raises(ValueError, match="broken"):
            async for _ in answers.events():
                pass
        answers.cancel()
        shared.drop()

    asyncio.run(collect())
    assert lease.releases == 1 and len(engine.cancelled) == 1


def test_a_request_that_is_refused_holds_nothing():
    lease = Lease()

    async def ask():
        shared = SharedLease(lease)
        with pytest.raises(ValueError, match="full"):
            Answers(Engine([], is_full=True), shared).ask(REQUEST)
        assert lease.releases == 0
        shared.drop()

    asyncio.run(ask())
    assert lease.releases == 1


def test_the_base_alone_has_nothing_to_release():
    shared = SharedLease(None)
    assert (shared.carried_name, shared.content_hash) == (None, "")
    shared.hold()
    shared.drop()
    shared.drop()

import asyncio
import threading
from types import SimpleNamespace

import pytest

from lorakit.serving.answers import Answers
from lorakit.serving.requests import Failed, Finished, GenerationRequest, NewText, Sampling
from lorakit.serving.store import Lease

REQUEST = GenerationRequest((1,), "german@1", "hash", Sampling(max_tokens=2))
END = Finished("stop", 1, 0, 2)


@pytest.fixture
def releases():
    return []


@pytest.fixture
def lease(releases):
    return Lease("german", "german@1", "hash", give_back=lambda: releases.append(None))


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


def test_events_come_with_the_number_of_their_answer(lease, releases):
    async def collect():
        answers = Answers(Engine([NewText((5,), "a"), END]), lease)
        for _ in range(2):
            answers.ask(REQUEST)
        lease.release()
        return [pair async for pair in answers.events()]

    found = asyncio.run(collect())
    for number in range(2):
        assert [event for index, event in found if index == number] == [NewText((5,), "a"), END]
    assert len(releases) == 1


def test_a_failure_is_raised_and_the_rest_can_be_given_up(lease, releases):
    engine = Engine([Failed(ValueError("broken"))])

    async def collect():
        answers = Answers(engine, lease)
        answers.ask(REQUEST)
        with pytest.raises(ValueError, match="broken"):
            async for _ in answers.events():
                pass
        answers.cancel()
        lease.release()

    asyncio.run(collect())
    assert len(releases) == 1 and len(engine.cancelled) == 1


def test_a_request_that_is_refused_holds_nothing(lease, releases):
    async def ask():
        with pytest.raises(ValueError, match="full"):
            Answers(Engine([], is_full=True), lease).ask(REQUEST)
        assert len(releases) == 0
        lease.release()

    asyncio.run(ask())
    assert len(releases) == 1

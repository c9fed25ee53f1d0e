"""Waiting for coroutines from another thread: merged streams, errors and giving up."""

import asyncio
import threading
from contextlib import closing

import pytest

from lorakit.serving.clients.event_loop import LoopThread


@pytest.fixture
def loop():
    with closing(LoopThread()) as made:
        yield made


async def numbers(*values):
    for value in values:
        yield value


async def endless(ended):
    try:
        while True:
            yield "more"
            await asyncio.sleep(0)
    finally:
        ended.set()


def test_a_coroutine_returns_or_raises(loop):
    async def double(number):
        return 2 * number

    assert loop.run(double(4)) == 8
    with pytest.raises(TypeError):
        loop.run(double(None))


def test_streams_are_merged_with_their_numbers_and_ends(loop):
    async def broken():
        yield 7
        raise ValueError("broken")

    found = list(loop.merge([numbers(1, 2), broken()]))
    assert [item for number, item in found if number == 0] == [1, 2, None]
    first, error = [item for number, item in found if number == 1]
    assert first == 7 and str(error) == "broken"


def test_closing_the_iterator_cancels_the_streams(loop):
    ended = threading.Event()
    merged = loop.merge([endless(ended)])
    assert next(merged) == (0, "more")
    merged.close()
    assert ended.wait(10)


def test_closing_the_loop_cancels_what_runs():
    loop, ended = LoopThread(), threading.Event()
    merged = loop.merge([endless(ended)])
    next(merged)
    loop.close()
    assert ended.is_set()
    merged.close()

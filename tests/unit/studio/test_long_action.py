"""Slow work: it is shown, can be cancelled, and its end is always shown."""

import asyncio
import threading
import time

import pytest

from lorakit.errors import DataError

pytestmark = pytest.mark.anyio


@pytest.fixture
async def page(user, monkeypatch):
    """A page with an action, and the action."""
    from nicegui import ui

    from lorakit.studio.frame import page, register
    from lorakit.studio.long_action import LongAction

    made = []

    @page("/test", "Test")
    def test():
        made.append(LongAction())

    register([test])
    await user.open("/test")
    assert ui
    return user, made[0]


async def running(user, action, act, **options):
    with user:
        return await action.run("Reading", act, **options)


async def test_the_result_comes_back_and_nothing_stays(page):
    user, action = page
    assert await running(user, action, lambda progress: 7) == 7
    await user.should_not_see("Reading")
    assert not action.is_running


async def test_what_it_says_is_shown_and_it_can_be_cancelled(page):
    user, action = page
    said = threading.Event()

    def act(progress):
        progress.say("Counting", 0.5)
        said.set()
        while not progress.is_cancelled:
            time.sleep(0.01)
        raise DataError("It has ended.")

    work = asyncio.create_task(running(user, action, act))
    await asyncio.to_thread(said.wait)
    await asyncio.sleep(0.5)
    await user.should_see("Counting …")
    user.find("Cancel").click()
    assert await work is None
    await user.should_see("Cancelled.")


async def test_a_process_is_ended(page):
    user, action = page
    ended = threading.Event()

    def act(progress):
        ended.wait(30)
        raise DataError("The process has ended.")

    work = asyncio.create_task(running(user, action, act, end=ended.set))
    await asyncio.sleep(0.3)
    action.cancel()
    assert await work is None
    await user.should_see("Cancelled.")


async def test_an_error_is_the_sentence_of_the_command_line(page):
    user, action = page

    def act(progress):
        raise DataError("Cannot read a.csv: line 3 has 2 cells, expected 4.")

    assert await running(user, action, act) is None
    await user.should_see("Cannot read a.csv: line 3 has 2 cells, expected 4.")
    with user:
        action.clear()
    await user.should_not_see("Cannot read a.csv")


async def test_a_function_that_ends_its_thread_leaves_no_spinner(page):
    user, action = page

    def act(progress):
        raise SystemExit(3)

    assert await running(user, action, act) is None
    await user.should_see("Reading ended without an answer (SystemExit: 3)")
    assert not action.is_running


async def test_one_runs_at_a_time(page):
    user, action = page
    go = threading.Event()
    first = asyncio.create_task(running(user, action, lambda progress: go.wait(30)))
    await asyncio.sleep(0.1)
    assert await running(user, action, lambda progress: 2) is None
    go.set()
    assert await first is True

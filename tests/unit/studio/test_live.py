"""Acting again and again while a page is open."""

import asyncio

import pytest

from fixtures.studio_pages import attend
from lorakit.errors import DataError

pytestmark = pytest.mark.anyio


@pytest.fixture
async def started(user):
    """Return a function that opens a page that acts again and again, and waits a moment."""
    from lorakit.studio.frame import page, register
    from lorakit.studio.live import every

    async def start(act, **options):
        @page("/test", "Test")
        def test():
            every(0.02, act, **options)

        register([test])
        await user.open("/test")
        await asyncio.sleep(0.4)

    return start


async def acted(calls, count):
    """Wait until there were as many calls."""
    async with asyncio.timeout(20):
        while len(calls) < count:
            await asyncio.sleep(0.01)


@pytest.fixture
def endless_rest(monkeypatch):
    """Let a page that rests look no more until somebody uses it."""
    from lorakit.studio import live

    monkeypatch.setattr(live, "_REST_S", 3600)


async def test_it_goes_on_when_the_clock_is_set_back(started, monkeypatch):
    calls = []
    monkeypatch.setattr("time.time", lambda: 1e9 - 3600 * len(calls))
    await started(lambda: calls.append(1))
    assert len(calls) > 5


async def test_an_error_is_shown_once_and_it_goes_on(started, user):
    calls = []

    async def act():
        calls.append(1)
        raise DataError("The file is gone.")

    await started(act)
    assert len(calls) > 5
    assert user.notify.messages.count("The file is gone.") == 1


async def test_an_unexpected_error_ends_it(started, user, caplog):
    calls = []

    def act():
        calls.append(1)
        raise KeyError("x")

    await started(act)
    assert len(calls) == 1 and "KeyError" in user.notify.messages[0]
    caplog.clear()


async def test_a_page_at_rest_acts_with_the_next_use(endless_rest, started, user):
    calls = []
    await started(lambda: calls.append(1))
    attend(user, "resting")
    await asyncio.sleep(0.1)
    count = len(calls)
    await asyncio.sleep(0.3)
    assert len(calls) == count > 5
    attend(user, "used")
    await acted(calls, count + 4)


async def test_a_page_at_rest_acts_more_seldom(started, user, monkeypatch):
    from lorakit.studio import live

    monkeypatch.setattr(live, "_REST_S", 0.2)
    calls = []
    await started(lambda: calls.append(1))
    attend(user, "resting")
    await asyncio.sleep(0.1)
    clock, count = asyncio.get_running_loop().time, len(calls)
    began_s = clock()
    await acted(calls, count + 3)
    assert clock() - began_s > 0.4


async def test_a_hidden_page_does_not_act(started, user, monkeypatch):
    from lorakit.studio import live

    monkeypatch.setattr(live, "_REST_S", 0.05)
    calls = []
    await started(lambda: calls.append(1))
    attend(user, "hidden")
    await asyncio.sleep(0.1)
    count = len(calls)
    await asyncio.sleep(0.3)
    assert len(calls) == count
    attend(user, "used")
    await acted(calls, count + 1)


async def test_a_page_does_not_rest_while_somebody_waits(endless_rest, started, user):
    calls, is_awaited = [], [True]
    await started(lambda: calls.append(1), is_awaited=lambda: is_awaited[0])
    attend(user, "resting")
    await asyncio.sleep(0.1)
    await acted(calls, len(calls) + 4)
    is_awaited[0] = False
    await acted(calls, len(calls) + 1)  # what was awaited has come
    await asyncio.sleep(0.1)
    count = len(calls)
    await asyncio.sleep(0.2)
    assert len(calls) == count


async def test_a_page_is_watched_once_whatever_acts_on_it(user):
    from nicegui import ui

    from lorakit.studio.frame import page, register
    from lorakit.studio.live import every

    @page("/test", "Test")
    def test():
        every(0.02, lambda: None)
        with ui.element("div"):
            every(0.02, lambda: None)

    register([test])
    await user.open("/test")
    listeners = [e for e in user.client.layout._event_listeners.values() if e.type == "attention"]
    assert len(listeners) == 1

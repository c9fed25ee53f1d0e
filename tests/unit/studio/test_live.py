"""Acting again and again while a page is open."""

import asyncio

import pytest

from lorakit.errors import DataError

pytestmark = pytest.mark.anyio


@pytest.fixture
async def started(user):
    from lorakit.studio.frame import page, register
    from lorakit.studio.live import every

    async def start(act):
        @page("/test", "Test")
        def test():
            every(0.02, act)

        register([test])
        await user.open("/test")
        await asyncio.sleep(0.4)

    return start


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

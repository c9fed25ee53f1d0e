"""Commands that the page of adapters runs."""

import asyncio

import pytest

from fixtures.studio_pages import attend, ended

pytestmark = pytest.mark.anyio


async def test_analysing_shows_the_result_when_the_command_has_ended(user, root, commands):
    await user.open("/adapters?path=french")
    user.find("Analyse").click()
    await asyncio.sleep(0.1)
    (command,) = commands()
    await asyncio.sleep(0.5)
    attend(user, "resting")  # the end is shown all the same
    await ended(lambda: command.is_over)
    assert command.problem is None
    await user.should_see("The largest updates")
    assert (root / "french-analysis" / "report.md").is_file()

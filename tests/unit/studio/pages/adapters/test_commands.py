"""Commands that the page of adapters runs."""

import asyncio
from types import SimpleNamespace

import pytest
from nicegui import ui

from fixtures.studio_pages import attend, ended
from lorakit.studio.pages.adapters.commands import _started

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


async def test_a_title_with_quotes_is_text_alone(user, root, monkeypatch):
    title = 'Combine into a" onclick="b'
    running = {"is_over": False, "is_cancelled": False, "seconds": 1.0}
    command = SimpleNamespace(title=title, line="", cancel=lambda: None, **running)
    monkeypatch.setitem(_started, root, [command])
    await user.open("/adapters?path=french")
    (bar,) = user.find(kind=ui.linear_progress).elements
    assert bar.props["aria-label"] == title and "onclick" not in bar.props

"""Small changes of a page are one message, and leave the page's elements as they were."""

import asyncio

import pytest
from nicegui import ui

from lorakit.studio.browser_calls import LiveBar, LiveText, call

pytestmark = pytest.mark.anyio


@pytest.fixture
async def page(user, monkeypatch):
    """A text and a bar on a page, and what is sent to it: scripts, and elements compared."""
    made = []

    @ui.page("/live")
    def show():
        made.extend([LiveText("p", "one"), LiveBar("Share of the steps")])

    await user.open("/live")
    scripts, compared = [], []
    client = made[0].client
    monkeypatch.setattr(client, "run_javascript", scripts.append)
    monkeypatch.setattr(client.outbox, "enqueue_update", compared.append)
    return made[0], made[1], scripts, compared


async def test_what_changes_at_once_is_one_message_without_a_comparison(page, user):
    text, bar, scripts, compared = page
    text.show("two \x1b\"'")
    bar.show(0.12345)
    call(text.client, "third()")
    assert scripts == []
    await asyncio.sleep(0)
    (script,) = scripts
    assert script.count(";\n") == 2 and script.endswith("third()")
    assert r"two \\x1b\"'" in script and '{"value": 0.123}' in script
    assert compared == []
    await user.should_see("two \\x1b\"'")
    assert bar.props["value"] == 0.123


async def test_what_has_not_changed_is_not_sent(page):
    text, bar, scripts, _ = page
    bar.show(0.5)
    await asyncio.sleep(0)
    scripts.clear()
    text.show("one")
    bar.show(0.50001)
    await asyncio.sleep(0)
    assert scripts == []


async def test_a_page_that_is_gone_gets_nothing(page):
    text, _, scripts, _ = page
    text.show("two")
    text.client.delete()
    await asyncio.sleep(0)
    assert scripts == []

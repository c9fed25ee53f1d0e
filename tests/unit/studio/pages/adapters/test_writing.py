"""Writing files that an adapter becomes."""

import asyncio

import pytest
from nicegui import ui

from fixtures.studio_pages import press

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("name", "offered"), [("french", 4), ("mood", 2)])
async def test_only_formats_that_can_hold_the_adapter_are_offered(user, root, name, offered):
    await user.open(f"/adapters?path={name}")
    (kind,) = [e for e in user.find(ui.select).elements if e.props.get("label") == "Format"]
    assert len(kind.options) == offered
    assert kind.value == ("portable" if offered == 4 else "peft")


async def test_a_target_outside_the_folder_starts_nothing(user, root, commands):
    await user.open("/adapters?path=french")
    targets = [e for e in user.find(ui.input).elements if e.props["label"] == "New directory"]
    for target in targets:
        target.set_value("../elsewhere")
    for name in ("Combine", "Merge", "Export"):
        press(next(b for b in user.find(ui.button).elements if b.text == name))
    await asyncio.sleep(0.1)
    assert commands() == []
    assert any("without '..'" in message for message in user.notify.messages)

"""The address of the models for other programs."""

import pytest
from nicegui import ui

from fixtures.studio_pages import load

pytestmark = pytest.mark.anyio


async def test_address_key_and_lines_are_shown_while_something_is_in_memory(user, root, state):
    await user.open("/playground?runs=german,mood")
    await user.should_not_see("From other programs")
    await load(user, state, "/playground?runs=german,mood")
    await user.should_see("From other programs")
    await user.should_see("/v1/classify")  # the last adapter, which is what one wants to try
    (model,) = [s for s in user.find(ui.select).elements if s._props.get("label") == "Model"]
    model.set_value("german")
    await user.should_see("/v1/chat/completions")
    await user.should_see("client.chat.completions.create")

"""What all models are asked."""

import pytest
from nicegui import ui

from fixtures.studio_pages import load

pytestmark = pytest.mark.anyio


async def test_nothing_can_be_asked_before_models_are_loaded(user, root, state):
    await user.open("/playground?runs=german")
    (ask,) = [b for b in user.find(ui.button).elements if b.text == "Ask"]
    assert not ask.enabled
    await load(user, state, "/playground?runs=german")
    (ask,) = [b for b in user.find(ui.button).elements if b.text == "Ask"]
    assert ask.enabled


async def test_sampling_is_explained_where_texts_are_written(user, root, state):
    await user.open("/playground?runs=german")
    await user.should_see("All models get the same text. Ctrl+Enter asks.")
    await load(user, state, "/playground?runs=german")
    await user.should_see("Temperature 0 takes the likeliest token")

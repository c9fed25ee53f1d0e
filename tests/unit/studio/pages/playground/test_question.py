"""What all models are asked."""

import json

import pytest
from nicegui import ui

from fixtures.studio_pages import load
from lorakit.serving.http.protocol.body import parse_body
from lorakit.serving.http.protocol.completions import SamplingFields

pytestmark = pytest.mark.anyio


async def test_nothing_can_be_asked_before_models_are_loaded(user, root, state):
    await user.open("/playground?runs=german")
    (ask,) = [b for b in user.find(ui.button).elements if b.text == "Ask"]
    assert not ask.enabled
    await load(user, state, "/playground?runs=german")
    (ask,) = [b for b in user.find(ui.button).elements if b.text == "Ask"]
    assert ask.enabled
    most = {each.props["label"]: each.max for each in user.find(ui.number).elements}
    given = {"model": "german", "temperature": most["Temperature"], "seed": most["Seed"]}
    parse_body(SamplingFields, json.dumps(given).encode())  # as the lines to copy have it


async def test_sampling_is_explained_where_texts_are_written(user, root, state):
    await user.open("/playground?runs=german")
    await user.should_see("All models get the same text. Ctrl+Enter asks.")
    await load(user, state, "/playground?runs=german")
    await user.should_see("Temperature 0 takes the likeliest token")

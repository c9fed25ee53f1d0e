"""Choosing a base and adapters, and what they cost."""

import json

import pytest

from fixtures.studio_pages import load
from lorakit.runs.base_memory import DeviceRoom

pytestmark = pytest.mark.anyio


async def test_what_a_base_takes_is_shown_before_it_is_loaded(user, root, state):
    await user.open("/playground?runs=german")
    await user.should_see("of memory as it is saved")
    await user.should_see("Only one base is in memory at a time.")
    assert state.base is None


async def test_an_adapter_of_another_base_is_left_out_and_said_so(user, root, state):
    config = root / "french" / "adapter_config.json"
    values = json.loads(config.read_text()) | {"base_model_name_or_path": "/other/base"}
    config.write_text(json.dumps(values))
    await user.open("/playground?runs=german,french")
    await user.should_see("french is left out: its base is /other/base")


async def test_what_loading_refuses_is_shown_in_its_sentence(user, root, state):
    config = root / "french" / "adapter_config.json"
    values = json.loads(config.read_text()) | {"base_model_name_or_path": "/other/base"}
    config.write_text(json.dumps(values))
    await load(user, state, "/playground?runs=french")
    await user.should_see("base_model_name_or_path of the adapters")
    assert "/other/base" in str(state.error)
    await user.should_see(str(state.error))


async def test_the_memory_that_is_free_is_that_of_the_device(user, root, state, monkeypatch):
    async def room():
        return DeviceRoom("Some GPU", 1000)

    monkeypatch.setattr(state, "room", room)
    await user.open("/playground?runs=german")
    await user.should_see("are free on Some GPU.")
    await user.should_see("got 0.001 MB of free memory")

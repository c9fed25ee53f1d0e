"""Combining adapters with sliders."""

import asyncio

import pytest
from nicegui import ui

from fixtures.studio_pages import ended, press
from lorakit.adapters import Adapter

pytestmark = pytest.mark.anyio


async def test_combine_runs_the_command_and_names_its_files(user, root, commands):
    await user.open("/adapters?path=runs/german")
    await user.should_see("ΔW = 1 runs/german")
    (others,) = [e for e in user.find(ui.select).elements if e.props["label"].startswith("Other")]
    others.set_value(["french"])
    await user.should_see("ΔW = 0.5 runs/german + 0.5 french")
    (button,) = [b for b in user.find(ui.button).elements if b.text == "Combine"]
    press(button)
    await asyncio.sleep(0.1)
    command = commands()[0]
    assert command.words[-2:] == ("--method", "linear")
    await ended(lambda: command.is_over)
    await user.should_see(str(root / "combined-1" / "adapter_model.safetensors"))
    made = Adapter.load(root / "combined-1")
    assert made.config.r > 0


async def test_a_mixture_of_sliders_opens_in_the_playground(user, root):
    await user.open("/adapters?path=french")
    (button,) = [b for b in user.find(ui.button).elements if b.text == "Try in the playground"]
    press(button)
    await ended(lambda: list(root.glob(".lorakit/mixtures/*/mixture.json")))
    (place,) = root.glob(".lorakit/mixtures/*")
    await user.open(f"/playground?mixture={place.name}")
    await user.should_see("1 french")

"""What the steps share."""

import asyncio
from dataclasses import replace
from threading import Event
from unittest.mock import ANY

import pytest

from lorakit.errors import LorakitError, OutputExistsError
from lorakit.runs.drafts import load_draft, new_draft, save_draft
from lorakit.runs.recipe_form import check_text
from lorakit.studio.pages.new_run import state
from lorakit.studio.pages.new_run.state import Walk

pytestmark = pytest.mark.anyio


async def test_a_text_is_saved_and_checked(user, studio, tickets):
    walk = Walk(studio.root, new_draft())
    assert walk.missing("base") == "Choose a base first." and not walk.is_reachable("data")
    changes = []
    walk.on_change = lambda: changes.append(walk.draft.text)
    await walk.write("model: m\n")
    assert walk.is_reachable("data") and not walk.is_reachable("method")
    assert walk.missing("data") == "Choose data first."
    await walk.write(tickets)
    assert walk.is_reachable("start") and changes == ["model: m\n", tickets]
    await walk.set_values({"lora.r": 0})
    assert walk.missing("method") == "1 problem to mend first."
    assert load_draft(studio.root, walk.draft.id) == replace(walk.draft, saved_s=ANY)


async def test_a_step_waits_for_the_text_of_the_field_that_was_just_left(
    user, studio, tickets, monkeypatch
):
    walk, may_go_on, reading = Walk(studio.root, new_draft(tickets)), Event(), Event()

    def check_slowly(text, where):
        reading.set()
        assert may_go_on.wait(60)
        return check_text(text, where)

    async def on_step():
        shown.append((walk.draft.step, walk.checked.value("lora.r")))

    shown, walk.on_step = [], on_step
    for rank, step in ((5, "plan"), (0, "start")):
        monkeypatch.setattr(state, "check_text", check_slowly)
        may_go_on.clear(), reading.clear()
        writing = asyncio.create_task(walk.set_values({"lora.r": rank}))
        assert await asyncio.to_thread(reading.wait, 60)
        going = asyncio.create_task(walk.go(step))
        await asyncio.sleep(0)
        assert not going.done()
        may_go_on.set()
        await asyncio.gather(writing, going)
    assert shown == [("plan", 5)]  # and no start of a recipe with a problem


async def test_what_another_tab_saved_is_not_overwritten(user, studio, tickets):
    draft = save_draft(studio.root, new_draft(tickets))
    one, other = Walk(studio.root, draft), Walk(studio.root, draft)
    shown = []

    async def on_step():
        shown.append(one.value("lora.r"))

    one.on_step = on_step
    await other.set_values({"lora.r": 4})
    await other.set_values({"lora.r": 5})
    with pytest.raises(OutputExistsError, match="changed in another tab"):
        await one.set_values({"lora.lora_dropout": 0.5})
    assert shown == [5] and one.value("lora.lora_dropout") != 0.5
    await one.set_values({"lora.lora_dropout": 0.5})
    saved = check_text(load_draft(studio.root, draft.id).text, "r")
    assert (saved.value("lora.r"), saved.value("lora.lora_dropout")) == (5, 0.5)


async def test_an_answer_is_remembered_and_an_error_is_shown(user, studio, see, computed_here):
    from nicegui import ui

    walk, asked = Walk(studio.root, new_draft()), []

    def count(number):
        asked.append(number)
        if number < 0:
            raise LorakitError("Negative: got less than 0.")
        return number + 1

    @ui.page("/ask")
    async def ask():
        place = ui.element("div")
        assert await walk.ask(place, "Counting", count, 1) == 2
        assert await walk.ask(place, "Counting", count, 1) == 2
        assert await walk.ask(place, "Counting", count, -1) is None

    await user.open("/ask")
    await see("Negative: got less than 0.")
    assert asked == [1, -1] and str(walk.last_error) == "Negative: got less than 0."

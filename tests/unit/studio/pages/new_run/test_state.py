"""What the steps share."""

from dataclasses import replace
from unittest.mock import ANY

import pytest

from lorakit.errors import LorakitError
from lorakit.runs.drafts import load_draft, new_draft
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

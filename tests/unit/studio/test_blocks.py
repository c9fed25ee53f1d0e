"""Pieces of pages."""

import pytest

pytestmark = pytest.mark.anyio


async def test_blocks_show_text_and_links(user):
    from nicegui import ui

    from lorakit.studio.blocks import badge, card, empty, note, problem
    from lorakit.studio.frame import page, register

    @page("/test", "Test")
    def test():
        with card("Title"):
            badge("failed")
            note("A note.\x07")
        problem("It failed.\nTry again.")
        empty("Nothing here.", "Begin", "/new")

    register([test])
    await user.open("/test")
    for text in ("Title", "failed", "A note.\\x07", "It failed.\nTry again.", "Nothing here."):
        await user.should_see(text)
    assert user.find("Begin").elements.pop().props["href"] == "/new"
    assert ui


async def test_cells_of_a_table_are_texts(user):
    from nicegui import ui

    from lorakit.studio.blocks import table

    @ui.page("/table")
    def show():
        table(("name", "value"), [("<b>x</b>", "1\x07"), ("a long text that may wrap", "2")])

    await user.open("/table")
    await user.should_see("<b>x</b>")
    await user.should_see("1\\x07")


async def test_a_part_is_drawn_again_only_when_what_it_shows_has_changed(user):
    from nicegui import ui

    from lorakit.studio.blocks import SteadyPart

    drawn = []

    @ui.page("/part")
    def show():
        part = SteadyPart("nav")
        for content in ("one", "one", "two"):
            part.show(content, lambda: drawn.append(ui.label(content)))  # noqa: B023

    await user.open("/part")
    await user.should_see("two")
    await user.should_not_see("one")
    assert [label.text for label in drawn] == ["one", "two"]

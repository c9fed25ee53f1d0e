"""Choosing data, and its columns."""

import json

import pytest
from nicegui import ui

from lorakit.quickstart.model_files import base_model_path
from lorakit.runs.drafts import load_draft
from lorakit.runs.recipe_form import check_text
from lorakit.studio.blocks import Text

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("computed_here")]
BASE = f"model: {base_model_path()}\n"


def recipe_of(studio, draft):
    return check_text(load_draft(studio.root, draft.id).text, "r").recipe


async def test_a_file_is_chosen_and_its_columns_are_mapped(studio, see, only, open_at, tickets):
    draft = await open_at("data", BASE)
    await see("Choose data first.")
    await see(kind=ui.radio)
    only(ui.radio).set_value("tickets.csv")
    await see("The first 10 examples as the model will see them")
    await see("label: a")
    recipe = recipe_of(studio, draft)
    assert (recipe.data.train, recipe.output) == ("tickets.csv", "runs/tickets")
    assert only(ui.select, "column of the text (data.text)").value == "text"
    only(ui.select, "column of the label (data.label)").set_value("text")
    await see("each of the 40 examples has a label in 'text' that no other has")


async def test_a_task_is_chosen_by_hand_and_one_that_does_not_fit_says_so(
    studio, see, only, open_at, tickets
):
    await open_at("data", tickets)
    await see("The first 10 examples")
    only(ui.select, "task").set_value("TOKEN_CLS")
    await see("does not fit 'tickets.csv'")


async def test_chats_show_what_counts(studio, see, only, open_at):
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    (studio.root / "chat.json").write_text(json.dumps([{"messages": talk}] * 12))
    draft = await open_at("data", BASE)
    await see(kind=ui.radio)
    only(ui.radio).set_value("chat.json")
    await see("The model learns to write the coloured tokens")
    assert recipe_of(studio, draft).data.format == "messages"
    assert only(ui.select, "column of the messages (data.messages)").value == "messages"


async def test_the_layout_of_texts_is_chosen(studio, see, only, open_at):
    rows = [{"frage": f"Was ist {n}?", "antwort": f"Das ist {n}."} for n in range(20)]
    (studio.root / "quiz.json").write_text(json.dumps(rows))
    draft = await open_at("data", BASE)
    await see(kind=ui.radio)
    only(ui.radio).set_value("quiz.json")
    await see("The task cannot be inferred")
    await see(kind=ui.select)  # it is drawn after the sentence
    only(ui.select, "task").set_value("CAUSAL_LM")
    await see("column of the completion (data.completion)")
    data = recipe_of(studio, draft).data
    assert (data.format, data.prompt, data.completion) == ("prompt_completion", "frage", "antwort")
    only(ui.select, "what an example is (data.format)").set_value("text")
    await see("column of the text (data.text)")
    only(ui.select, "column of the text (data.text)").set_value("frage")
    await see("The first 10 examples")
    assert recipe_of(studio, draft).data.format == "text"


async def test_text_of_a_file_is_never_markup(studio, see, only, open_at, user):
    rows = "".join(f"<script>alert({n})</script>\x1b[31m,{'💥b'[n % 2]}\n" for n in range(20))
    (studio.root / "evil <b>.csv").write_text("text,label\n" + rows)
    await open_at("data", BASE)
    await see(kind=ui.radio)
    only(ui.radio).set_value("evil <b>.csv")
    await see("label: 💥")
    shown = "".join(element.text for element in user.find(kind=Text).elements)
    assert "\x1b" not in shown and "\\x1b" in shown

"""Choosing data, and its columns."""

import asyncio
import json
from threading import Event

import pytest
from nicegui import ui

from lorakit.quickstart.model_files import base_model_path
from lorakit.recipes.yaml_edits import UNSET, with_values
from lorakit.runs.drafts import load_draft
from lorakit.runs.recipe_form import check_text
from lorakit.studio.blocks import Text
from lorakit.studio.pages.new_run import data

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


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.parquet", b"text,label\n1,2\n", "which is damaged or not what its ending says"),
        ("a.csv", b"PK\x03\x04\x00\xff\xfe", "which is a zip archive or a spreadsheet"),
        ("a.json", b"{", "which is not JSON at line 1, column 2"),
        ("a.jsonl", b"\x00\xff\n", "whose line 1 has the byte 0xff"),
        ("empty.csv", b"", "got 0, expected at least 1"),
    ],
)
async def test_a_file_that_is_not_what_its_ending_says_is_named(
    studio, see, only, open_at, user, name, content, words
):
    (studio.root / name).write_bytes(content)
    await open_at("data", BASE)
    await see(kind=ui.radio)
    only(ui.radio).set_value(name)
    await see(words)
    await user.should_not_see(kind=ui.linear_progress)


async def test_text_of_a_file_is_never_markup(studio, see, only, open_at, user):
    rows = "".join(f"<script>alert({n})</script>\x1b[31m,{'💥b'[n % 2]}\n" for n in range(20))
    (studio.root / "evil <b>.csv").write_text("text,label\n" + rows)
    await open_at("data", BASE)
    await see(kind=ui.radio)
    only(ui.radio).set_value("evil <b>.csv")
    await see("label: 💥")
    shown = "".join(element.text for element in user.find(kind=Text).elements)
    assert "\x1b" not in shown and "\\x1b" in shown


PAIRS = [{"prompt": f"Say {n}.", "chosen": " Gladly.", "rejected": " Never."} for n in range(12)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


async def test_two_answers_stand_beside_each_other(studio, see, only, open_at):
    write_rows(studio.root / "pairs.jsonl", PAIRS)
    draft = await open_at("data", BASE)
    await see(kind=ui.radio)
    only(ui.radio).set_value("pairs.jsonl")
    await see("The model learns to prefer the first answer to the second")
    await see("chosen")
    await see("rejected")
    recipe = recipe_of(studio, draft)
    assert (recipe.task, recipe.objective.type, recipe.data.format) == (
        *("CAUSAL_LM", "dpo"),
        "preference",
    )
    assert only(ui.select, "column of the worse answer (data.rejected)").value == "rejected"
    only(ui.select, "task").set_value("reward")
    await see("The model learns to score the first answer higher")
    assert recipe_of(studio, draft).task == "SEQ_CLS"


async def test_columns_that_do_not_fit_a_chosen_task_are_chosen_by_hand(studio, see, only, open_at):
    rows = [{"frage": f"Sag {n}.", "gut": " Ja.", "schlecht": " Nein."} for n in range(12)]
    write_rows(studio.root / "pairs.jsonl", rows)
    draft = await open_at("data", BASE)
    await see(kind=ui.radio)
    only(ui.radio).set_value("pairs.jsonl")
    await see("The task cannot be inferred")
    await see(kind=ui.select)  # it is drawn after the sentence
    only(ui.select, "task").set_value("dpo")
    await see("No preferences for objective.type=dpo")
    for key, column in (("prompt", "frage"), ("chosen", "gut"), ("rejected", "schlecht")):
        names = {"prompt": "prompt", "chosen": "better answer", "rejected": "worse answer"}
        only(ui.select, f"column of the {names[key]} (data.{key})").set_value(column)
    await see("The first 10 examples")
    data = recipe_of(studio, draft).data
    assert (data.prompt, data.chosen, data.rejected) == ("frage", "gut", "schlecht")


async def test_several_labels_are_separated_or_not(studio, see, only, open_at):
    kinds = ["post 📦", "bill", "post 📦; bill", "praise; bill"]
    lines = [f"Größe {n},{kinds[n % 4]}" for n in range(40)]
    (studio.root / "t.csv").write_text("\n".join(["nachricht,themen", *lines]), encoding="utf-8")
    draft = await open_at("data", BASE)
    await see(kind=ui.radio)
    only(ui.radio).set_value("t.csv")
    await see("labels: bill, post 📦")
    assert recipe_of(studio, draft).data.label_separator == ";"
    only(ui.select, "what separates several labels (data.label_separator)").set_value("(none)")
    await see("label: post 📦; bill")
    assert recipe_of(studio, draft).data.label_separator is None


async def test_a_file_that_is_not_understood_takes_nothing_from_the_one_before(
    studio, see, only, open_at, tickets, until
):
    write_rows(studio.root / "odd.jsonl", [{"a": n, "b": [n]} for n in range(9)])
    draft = await open_at("data", tickets)
    await see("The first 10 examples")
    only(ui.radio).set_value("odd.jsonl")
    await see("The task cannot be inferred")
    await until(lambda: "odd.jsonl" in load_draft(studio.root, draft.id).text)
    values = check_text(load_draft(studio.root, draft.id).text, "r").values
    assert values["data"] == {"train": "odd.jsonl", "validation_fraction": 0.1}
    assert "task" not in values
    await until(lambda: only(ui.select, "task").value is None)


async def test_another_file_of_the_same_task_keeps_the_settings(
    studio, see, only, open_at, tickets, until
):
    text = with_values(tickets, {"lora.r": 3, "lora.lora_dropout": UNSET, "start_from": "runs/a"})
    lines = [f"letter {n} of someone,{'xy'[n % 2]}" for n in range(40)]
    (studio.root / "letters.csv").write_text("\n".join(["body,kind", *lines]))
    draft = await open_at("data", text)
    await see(kind=ui.radio)
    only(ui.radio).set_value("letters.csv")
    await until(lambda: "letters.csv" in load_draft(studio.root, draft.id).text)
    await see("runs/a")  # which is not there
    values = check_text(load_draft(studio.root, draft.id).text, "r").values
    assert values["lora"] == check_text(text, "r").values["lora"]
    assert (values["start_from"], values["data"]["text"]) == ("runs/a", "body")
    assert values["training"]["use_cpu"] is True


async def test_a_file_that_is_still_read_does_not_replace_one_that_was_chosen_after_it(
    user, studio, see, only, open_at, tickets, until, monkeypatch
):
    write_recipe, may_go_on = data.write_recipe_for, Event()

    def write_recipe_for(name, *given, **options):
        assert name != "slow.csv" or may_go_on.wait(60)
        return write_recipe(name, *given, **options)

    monkeypatch.setattr(data, "write_recipe_for", write_recipe_for)
    (studio.root / "slow.csv").write_text((studio.root / "tickets.csv").read_text())
    draft = await open_at("data", BASE)
    await see(kind=ui.radio)
    only(ui.radio).set_value("tickets.csv")
    await see("The first 10 examples")
    only(ui.radio).set_value("slow.csv")
    await see("Reading slow.csv")
    only(ui.radio).set_value("tickets.csv")
    await see("The first 10 examples")
    may_go_on.set()
    await asyncio.sleep(1)  # the answer comes, and nobody wants it
    assert recipe_of(studio, draft).data.train == "tickets.csv"


async def test_several_sources_are_named(studio, see, open_at, tickets):
    sources = [{"path": "tickets.csv", "weight": 2.0}, {"path": "tickets.csv"}]
    await open_at("data", with_values(tickets, {"data.train": sources}))
    await see("2 sources are in the recipe (data.train).")
    await see("The first 10 examples")

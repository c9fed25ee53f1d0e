"""The fields and the text beside them, which are one recipe."""

import pytest
from nicegui import ui

from lorakit.recipes.template import recipe_text
from lorakit.recipes.yaml_edits import with_values
from lorakit.runs.drafts import load_draft
from lorakit.runs.recipe_form import FIELDS, check_text, help_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def draft(open_at, see):
    text = with_values(recipe_text("CAUSAL_LM", "r.yaml", "runs/a", "m"), {"data.train": "a.csv"})
    made = await open_at("method", text)
    await see("The recipe")
    return made


async def test_every_field_has_its_name_its_value_and_help(only, draft):
    assert len(FIELDS) == 12
    assert only(ui.input, "lora.r").value == "8"
    assert only(ui.select, "quantization.bits").value == "as saved"
    for field in FIELDS:
        element = only(ui.select if field.choices else ui.input, field.key)
        assert element.props["hint"] == help_of(field.key, "CAUSAL_LM").replace('"', "'")


async def test_a_field_changes_the_text_and_keeps_its_comments(only, until, draft, studio):
    only(ui.input, "lora.r").set_value("32")
    only(ui.select, "quantization.bits").set_value("4 bits (QLoRA)")
    editor = only(ui.codemirror)
    await until(lambda: "quantization: {bits: 4}  " in editor.value and "r: 32 " in editor.value)
    assert editor.value.count("#") == draft.text.count("#") - 1
    await until(lambda: load_draft(studio.root, draft.id).text == editor.value)
    only(ui.select, "quantization.bits").set_value("as saved")
    await until(lambda: "# quantization: {bits: 4}" in editor.value)


async def test_the_text_changes_the_fields(only, until, draft):
    editor = only(ui.codemirror)
    editor.set_value(with_values(draft.text, {"lora.r": 4, "lora.target_modules": ["a", "b"]}))
    await until(lambda: only(ui.input, "lora.target_modules").value == "a, b")
    assert only(ui.input, "lora.r").value == "4"


async def test_a_problem_is_shown_at_its_field_and_its_line(only, until, see, user, draft):
    element = only(ui.input, "lora.r")
    element.set_value("none at all")
    await see("1 problem to mend first.")
    (problem,) = check_text(with_values(draft.text, {"lora.r": "none at all"}), "r").problems
    await until(lambda: element.error == problem.sentence)
    await see(f"line {problem.line}")
    assert only(ui.codemirror).decorations[0]["line"] == problem.line
    element.set_value("16")
    await user.should_not_see("1 problem to mend first.", retries=300)
    await until(lambda: element.error is None)


async def test_what_is_not_yaml_closes_the_fields_until_it_is_mended(only, until, see, draft):
    editor = only(ui.codemirror)
    editor.set_value(draft.text + "\nlora: [\n")
    await see("Cannot read the recipe, line")
    assert not only(ui.input, "lora.r").enabled
    editor.set_value(draft.text)
    await until(lambda: only(ui.input, "lora.r").enabled)


async def test_preferences_have_fields_of_their_objective(only, until, see, open_at, studio):
    text = recipe_text("CAUSAL_LM", "r.yaml", "runs/a", "m", objective="dpo")
    draft = await open_at("method", with_values(text, {"objective.sft_weight": 0.5}))
    await see("The recipe")
    assert only(ui.select, "objective.type").value == "dpo"
    only(ui.input, "objective.beta").set_value("0.3")
    await until(lambda: "beta: 0.3" in load_draft(studio.root, draft.id).text)
    values = check_text(load_draft(studio.root, draft.id).text, "r").values
    assert values["objective"] == {"type": "dpo", "beta": 0.3, "sft_weight": 0.5}

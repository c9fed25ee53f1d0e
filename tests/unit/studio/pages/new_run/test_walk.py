"""The walk: its five steps, its draft, and what keeps a step from the next."""

from urllib.parse import urlencode

import pytest
from nicegui import ui

from lorakit.quickstart.model_files import base_model_path
from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.yaml_edits import with_values
from lorakit.runs.drafts import load_draft, recent_drafts
from lorakit.runs.recipe_form import check_text
from lorakit.runs.votes import add_votes, preference

pytestmark = pytest.mark.anyio


async def test_a_step_leads_to_the_next_and_the_draft_knows_where(
    user, studio, see, until, only, open_at, tickets
):
    draft = await open_at("base", tickets)
    await see("LlamaForCausalLM")
    user.find("Next: Data").click()
    await see("Choose the training data")
    assert load_draft(studio.root, draft.id).step == "data"
    await user.open(f"/new?draft={draft.id}")  # as after a reload
    await see("Choose the training data")
    user.find("Back").click()
    await see("Choose a base model")


async def test_a_step_beyond_a_problem_cannot_be_reached(see, open_at, tickets, user):
    await open_at("method", with_values(tickets, {"lora.r": 0}))
    await see("1 problem to mend first.")
    (button,) = user.find(kind=ui.button, content="Next: Plan").elements
    assert not button.enabled


async def test_the_way_on_stays_the_same_button_while_the_recipe_changes(
    user, see, until, only, open_at, tickets, studio
):
    draft = await open_at("method", tickets)
    (before,) = user.find(kind=ui.button, content="Next: Plan").elements
    only(ui.input, "training.num_train_epochs").set_value("7")
    await until(lambda: "num_train_epochs: 7" in load_draft(studio.root, draft.id).text)
    (after,) = user.find(kind=ui.button, content="Next: Plan").elements
    assert after is before  # a press that begins on one element and ends on another is no click


async def test_a_lost_draft_begins_a_new_run(user, see):
    await user.open("/new?draft=0123456789ab")
    await see("Choose a base first.")


async def test_a_run_is_cloned_with_another_output(user, studio, see, tickets):
    recipe = check_text(tickets, "r").recipe
    RunDirectory.create(studio.root / "runs" / "a", recipe)
    await user.open("/new?from=runs/a")
    await see("The recipe")
    (draft,) = recent_drafts(studio.root)
    cloned = check_text(draft.text, "r").recipe
    assert cloned == recipe.model_copy(update={"output": "runs/a-2"})
    search = studio.root / "runs" / "search"
    search.mkdir()
    for name, values in (("search", recipe), ("best", recipe.with_changes({"lora.r": 3}, "it"))):
        (search / f"{name}.yaml").write_text(values.to_yaml())
    await user.open("/new?from=runs/search")
    await see("The recipe")
    found = check_text(recent_drafts(studio.root)[0].text, "r").recipe
    assert (found.lora.r, found.output) == (3, "runs/a-2")


async def test_what_cannot_be_cloned_is_said(user, see):
    await user.open("/new?from=../outside")
    await see("it leads out of that folder")
    await user.open("/new?from=nowhere")
    await see("Nothing at 'nowhere'")


async def test_an_address_names_a_step_that_nothing_is_missing_before(user, see, open_at, tickets):
    draft = await open_at("plan", tickets)
    await user.open(f"/new?draft={draft.id}&step=data")
    await see("Choose the training data")
    await user.open(f"/new?draft={draft.id}&step=nowhere")
    await see("Memory at the peak of a step")
    draft = await open_at("method", with_values(tickets, {"lora.r": 0}))
    await user.open(f"/new?draft={draft.id}&step=plan")
    await see("1 problem to mend first.")


async def test_a_second_round_begins_with_the_adapter_of_a_run(user, studio, see, tickets):
    recipe = check_text(tickets, "r").recipe
    RunDirectory.create(studio.root / "runs" / "a", recipe)
    await user.open("/new?start=runs/a")
    await see("Choose the training data")
    (draft,) = recent_drafts(studio.root)
    second = check_text(draft.text, "r").recipe
    assert (second.start_from, second.output) == ("runs/a", "runs/a-2")
    assert "lora" not in second.model_fields_set


async def test_votes_become_a_run_on_preferences_that_starts_from_the_adapter(
    user, studio, see, computed_here, until
):
    file = studio.root / "preferences" / "texts.jsonl"
    votes = [
        preference(f"Say {n}.", " Yes.", " No.", chosen_from="a", rejected_from="b")
        for n in range(12)
    ]
    add_votes(file, votes)
    (studio.root / "first").mkdir()
    query = {"data": "preferences/texts.jsonl", "model": str(base_model_path())}
    await user.open(f"/new?{urlencode({**query, 'adapter': 'first'})}")
    await until(lambda: recent_drafts(studio.root))
    await until(lambda: "objective" in recent_drafts(studio.root)[0].text)
    (draft,) = recent_drafts(studio.root)
    recipe = check_text(draft.text, "r").recipe
    assert (recipe.start_from, recipe.objective.type) == ("first", "dpo")
    assert recipe.data.train == "preferences/texts.jsonl"

"""Training a run on."""

import pytest
from nicegui import ui

from lorakit.recipes.run_directory import RunDirectory
from lorakit.recipes.yaml_edits import with_values
from lorakit.runs import queue
from lorakit.runs.recipe_form import check_text

pytestmark = pytest.mark.anyio


@pytest.fixture
def run(studio, tickets):
    return RunDirectory.create(studio.root / "runs" / "a", check_text(tickets, "r").recipe)


async def test_more_epochs_are_trained_by_the_command_that_is_shown(
    user, run_page, run, see, until, only, monkeypatch
):
    started = []
    monkeypatch.setattr(queue, "start_supervisor", lambda job, root: started.append(job))
    await user.open("/new?continue=runs/a")
    await see("was to train, and is not finished, for 3 epochs.")
    await see("lorakit train runs/a/recipe.yaml --resume")
    only(ui.number).set_value(1_250_000)
    await see("training.num_train_epochs=1250000 --resume")
    only(ui.number).set_value(6)
    await see("lorakit train runs/a/recipe.yaml training.num_train_epochs=6 --resume")
    user.find(kind=ui.button, content="Train on").click()
    await until(lambda: started)
    words = ["train", "runs/a/recipe.yaml", "training.num_train_epochs=6", "--resume"]
    assert list(started[0].words) == words and started[0].output == "runs/a"
    await see("The run runs/a")


async def test_a_name_with_characters_of_addresses_leads_to_its_run(
    user, run_page, studio, see, tickets, monkeypatch
):
    monkeypatch.setattr(queue, "start_supervisor", lambda job, root: None)
    RunDirectory.create(studio.root / "a #1?", check_text(tickets, "r").recipe)
    await user.open("/new?continue=a%20%231%3F")
    await see("was to train, and is not finished")
    user.find(kind=ui.button, content="Train on").click()
    await see("The run a #1?")


async def test_a_finished_run_needs_more_than_it_has(user, run, see, only, tickets):
    run.write_recipe(check_text(with_values(tickets, {"training.max_steps": 10}), "r").recipe)
    run.adapter.mkdir()
    run.report_file.touch()
    await user.open("/new?continue=runs/a")
    await see("has trained for 10 optimizer steps.")
    await see("training.max_steps=20 --resume")
    only(ui.number).set_value(10)
    await see("Choose more than 10.")
    (button,) = user.find(kind=ui.button, content="Train on").elements
    assert not button.enabled


async def test_what_is_no_run_is_said(user, see):
    await user.open("/new?continue=runs/none")
    await see("Nothing at 'runs/none'")

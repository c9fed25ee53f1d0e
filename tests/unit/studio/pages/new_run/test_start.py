"""The last step: the command line, and starting it."""

import errno

import pytest
from nicegui import ui

from lorakit.files.disks import reporting_disk_errors
from lorakit.recipes.yaml_edits import with_values
from lorakit.runs import queue
from lorakit.runs.drafts import recent_drafts
from lorakit.studio.pages.new_run import start

pytestmark = pytest.mark.anyio


async def test_the_command_is_the_one_that_is_run_on_the_recipe_that_is_written(
    user, run_page, see, until, open_at, tickets, studio, monkeypatch
):
    started = []
    monkeypatch.setattr(queue, "start_supervisor", lambda job, root: started.append(job))
    await open_at("start", tickets)
    await see(f"cd {studio.root} && lorakit train recipes/a.yaml")
    user.find("Start training").click()
    await until(lambda: started and not recent_drafts(studio.root))
    (job,) = started
    assert list(job.words) == ["train", "recipes/a.yaml"] and job.output == "runs/a"
    assert (studio.root / "recipes" / "a.yaml").read_text() == tickets
    await see("The run runs/a")


async def test_a_name_with_characters_of_addresses_leads_to_its_run(
    user, run_page, see, open_at, tickets, studio, monkeypatch
):
    monkeypatch.setattr(queue, "start_supervisor", lambda job, root: None)
    output = str(studio.root / "runs" / "100% é#1?")  # a recipe may have the whole path
    await open_at("start", with_values(tickets, {"output": output}))
    await see("Start training")
    user.find("Start training").click()
    await see("The run runs/100% é#1?")


@pytest.mark.parametrize("output", ["../elsewhere", ".hidden", "."])
async def test_an_output_that_no_page_would_show_is_refused_before_it_is_started(
    user, see, open_at, tickets, output
):
    await open_at("start", with_values(tickets, {"output": output}))
    await see(f"output: got '{output}', expected")
    (button,) = user.find(kind=ui.button, content="Start training").elements
    assert not button.enabled


async def test_an_output_that_is_taken_is_said_before_anything_is_written(
    user, see, until, only, open_at, tickets, studio
):
    await open_at("start", tickets)
    await see("The same from a terminal")
    (studio.root / "runs" / "b").mkdir(parents=True)
    (studio.root / "runs" / "b" / "file").touch()
    only(ui.input).set_value("runs/b")
    await see("Cannot write to output")
    (button,) = user.find(kind=ui.button, content="Start training").elements
    assert not button.enabled
    only(ui.input).set_value("")
    await see("output: got ''")
    only(ui.input).set_value("runs/c")
    await see("lorakit train recipes/c.yaml")
    assert button.enabled and not (studio.root / "recipes").exists()


async def test_a_full_disk_is_said_and_the_run_can_be_started_again(
    user, see, until, open_at, tickets, monkeypatch
):
    def refuse(file, text):
        with reporting_disk_errors(file):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(start, "write_text", refuse)
    await open_at("start", tickets)
    await see("Start training")
    user.find("Start training").click()
    await see("recipes/a.yaml")
    await see("Free some space")
    (button,) = user.find(kind=ui.button, content="Start training").elements
    await until(lambda: button.enabled)

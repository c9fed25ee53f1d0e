"""Tags, notes, deleting and the trash, from the list of runs."""

import asyncio

import pytest
from nicegui import ui

from fixtures.run_folders import made_run
from lorakit.recipes.directory_lock import locking_directory
from lorakit.runs.notes import Notes, read_notes, write_note

pytestmark = pytest.mark.anyio


async def asked(user, name, path):
    """Send what a button in a row of the table sends."""
    user.find(ui.table).trigger(name, path)
    await asyncio.sleep(0.2)


async def test_tags_and_a_note_are_saved(user, studio):
    path = made_run(studio.root, "a")
    write_note(path, "old")
    await user.open("/")
    await asked(user, "edit", "a")
    await user.should_see("Tags and note of a")
    user.find("Note").clear().type("new")
    user.find("Save").click()
    await asyncio.sleep(0.5)
    assert read_notes(path) == Notes((), "new")


async def test_a_tag_that_enter_has_not_added_is_saved_too(user, studio):
    path = made_run(studio.root, "a")
    await user.open("/")
    await asked(user, "edit", "a")
    await user.should_see("Tags and note of a")
    user.find(kind=ui.input_chips).trigger("inputValue", " best ")
    user.find("Save").click()
    await asyncio.sleep(0.5)
    assert read_notes(path) == Notes(("best",), "")


async def test_a_run_is_deleted_and_restored(user, studio):
    made_run(studio.root, "a")
    await user.open("/")
    await asked(user, "remove", "a")
    await user.should_see("Move a to the trash?")
    user.find("Move to the trash").click()
    await user.should_see("There is no run in this folder yet.", retries=30)
    assert [run.origin for run in studio.trash.runs()] == ["a"]
    user.find(kind=ui.button, content="delete_sweep").click()
    await user.should_see("Restore", retries=20)
    user.find("Restore").click()
    await user.should_see("1 of 1 run, 0 running", retries=30)


async def test_a_run_that_is_written_to_is_not_deleted(user, studio):
    path = made_run(studio.root, "a")
    with locking_directory(path):
        await user.open("/")
        await asked(user, "remove", "a")
        user.find("Move to the trash").click()
        await user.should_see("it is in use by process", retries=30)
    assert path.is_dir()


async def test_a_job_that_waits_is_removed(user, studio, monkeypatch):
    monkeypatch.setattr("lorakit.runs.queue.start_supervisor", lambda job, root: None)
    studio.queue.add(["train", "recipe.yaml"], "later")
    await user.open("/")
    await asked(user, "remove", "later")
    await user.should_see("Remove later from the queue?")
    user.find(kind=ui.button, content="Remove").click()
    await user.should_see("There is no run in this folder yet.", retries=30)
    assert studio.queue.jobs.all() == []

"""The list of runs, live."""

import asyncio

import pytest
from nicegui import ui

from fixtures.run_folders import evaluation, made_run, made_search

pytestmark = pytest.mark.anyio


async def test_runs_and_searches_are_listed_as_they_come(user, studio):
    await user.open("/")
    await user.should_see("There is no run in this folder yet")
    made_run(studio.root, "first", rows=[evaluation(4, eval_accuracy=0.75)], finished=True)
    made_search(studio.root, "many")
    await asyncio.sleep(2.5)
    (table,) = user.find(kind=ui.table).elements
    rows = {row["path"]: row for row in table.rows}
    assert rows["first"]["state"] == "finished"
    assert rows["many"]["kind"] == "search"
    assert rows["many"]["href"] == "/search/many"


async def test_a_run_that_is_deleted_is_no_longer_selected(user, studio):
    for name in ("a", "b"):
        made_run(studio.root, name)
    await user.open("/")
    (table,) = user.find(kind=ui.table).elements
    table.selected = list(table.rows)
    user.find(ui.table).trigger("remove", "a")
    await user.should_see("Move a to the trash?", retries=20)
    user.find("Move to the trash").click()
    await user.should_see("1 of 1 run", retries=30)
    assert [row["path"] for row in table.selected] == ["b"]
    (button,) = user.find(kind=ui.button, content="Compare 1").elements
    assert not button.enabled

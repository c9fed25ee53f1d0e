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

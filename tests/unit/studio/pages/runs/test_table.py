"""The list of runs: its rows, the filter, and what is live."""

import asyncio
import os

import pytest
from nicegui import ui

from fixtures.run_folders import evaluation, locked_by, logged, made_run
from lorakit.runs.index import RunIndex
from lorakit.runs.notes import write_tags
from lorakit.studio.pages.runs.table import Filter, cells

pytestmark = pytest.mark.anyio


def rows(user):
    (table,) = user.find(ui.table).elements
    return {row["path"]: row for row in table.rows}


async def test_an_empty_folder_says_so(user):
    await user.open("/")
    await user.should_see("There is no run in this folder yet.")


async def test_a_row_has_what_the_run_has(user, studio):
    lines = [logged(9, loss=1.0, train_tokens_per_s=1234.6), evaluation(60, eval_accuracy=0.87654)]
    path = made_run(studio.root, "a/b", model="/models/tiny", rows=lines, finished=True)
    write_tags(path, ["good", "rank 8"])
    await user.open("/")
    row = rows(user)["a/b"]
    shown = ("href", "state", "task", "base", "metric", "value", "duration", "speed", "tags")
    assert [row[name] for name in shown] == [
        *("/run/a/b", "finished", "SEQ_CLS", "tiny", "accuracy", "0.8765", "1 min 30 s", "1,235"),
        "good\nrank 8",
    ]
    await user.should_see("1 of 1 run, 0 running")


async def test_a_damaged_directory_is_a_row_with_its_sentence(user, studio):
    (made_run(studio.root, "bad") / "recipe.yaml").write_text("model: [")
    await user.open("/")
    assert rows(user)["bad"]["state"] == "damaged"
    assert "recipe.yaml, line 1, column 9" in rows(user)["bad"]["problem"]


async def test_states_change_while_the_page_is_open(user, studio):
    path = made_run(studio.root, "a")
    await user.open("/")
    assert rows(user)["a"]["state"] == "interrupted"
    locked_by(path, os.getpid())
    for _ in range(50):
        await asyncio.sleep(0.1)
        if rows(user)["a"]["state"] == "running":
            break
    assert rows(user)["a"]["state"] == "running"


async def test_the_filter_is_in_the_address(user, studio):
    for name in ("red one", "blue one"):
        made_run(studio.root, name)
    await user.open("/?q=RED")
    assert list(rows(user)) == ["red one"]
    await user.open("/?q=red&state=finished")
    await user.should_see("No run matches the filter.")
    assert Filter("a b", "failed").address() == "/?q=a+b&state=failed"
    assert Filter().address() == "/"


def test_hostile_texts_are_escaped_and_links_quoted(tmp_path):
    made_run(tmp_path, "<script>\x1b", model="a\u202eb", finished=True)
    (row,) = map(cells, RunIndex(tmp_path).refresh())
    assert row["shown"] == "<script>\\x1b" and row["base"] == "a\\u202eb"
    assert row["href"] == "/run/%3Cscript%3E%1B"

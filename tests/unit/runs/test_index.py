"""The list of all runs of a folder."""

import os
import time

import pytest

from fixtures.run_folders import evaluation, locked_by, made_run, made_search
from lorakit.runs.index import RunIndex
from lorakit.runs.queue import RunQueue


def paths(rows):
    return [row.path for row in rows]


def test_runs_are_listed_newest_first(tmp_path):
    made_run(tmp_path, "old", age_s=100)
    made_run(tmp_path, "sub/new", age_s=1, rows=[evaluation(4, eval_loss=0.5)], finished=True)
    new, old = RunIndex(tmp_path).refresh()
    assert (new.path, new.name, old.path) == ("sub/new", "new", "old")
    assert (new.state, new.metric, new.value, new.step) == ("finished", "eval_loss", 0.5, 4)


@pytest.mark.parametrize("kind, best", [("search", "best.yaml"), ("study", "recommended.yaml")])
def test_a_search_is_one_row_and_its_trials_none(tmp_path, kind, best):
    path = made_search(tmp_path, "first", kind)
    made_run(tmp_path, "first/trials/trial-001")
    index = RunIndex(tmp_path)
    (row,) = index.refresh()
    assert (row.path, row.kind, row.state, row.task) == ("first", kind, "interrupted", "SEQ_CLS")
    (path / best).write_text("model: x")
    (row,) = index.refresh()
    assert row.state == "finished"


def test_damaged_directories_are_rows(tmp_path):
    path = made_run(tmp_path, "damaged")
    (path / "recipe.yaml").unlink()
    made_run(tmp_path, "fine")
    (path / "metrics.jsonl").write_text("{}\n")
    rows = {row.path: row for row in RunIndex(tmp_path).refresh()}
    assert rows["damaged"].state == "damaged"
    assert "there is no recipe.yaml in it" in rows["damaged"].problem
    assert rows["fine"].state == "interrupted"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_directory_that_may_not_be_read_is_a_row(tmp_path):
    path = made_run(tmp_path, "closed")
    path.chmod(0)
    (row,) = RunIndex(tmp_path).refresh()
    path.chmod(0o700)
    assert row.state == "damaged" and "Permission denied" in row.problem


def test_symbolic_links_and_hidden_directories_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    made_run(outside, "secret")
    root = tmp_path / "root"
    made_run(root, "run")
    made_run(root, ".lorakit/trash/000001/run")
    (root / "link").symlink_to(outside)
    (root / "circle").symlink_to(root)
    assert paths(RunIndex(root).refresh()) == ["run"]


def test_hostile_names_are_only_names(tmp_path):
    names = ["<script>alert(1)</script>", "a\nb", "\u202eabc", "-rf", "emoji 😀", "a'b\"c"]
    for name in names:
        made_run(tmp_path, name.replace("/", "_"))
    assert len(RunIndex(tmp_path).refresh()) == len(names)


def test_an_index_sees_what_changes(tmp_path):
    index = RunIndex(tmp_path)
    assert index.refresh() == []
    path = made_run(tmp_path, "a/b/run")
    assert paths(index.refresh()) == ["a/b/run"]
    locked_by(path, os.getpid())
    assert index.refresh()[0].state == "running"
    (path / ".lock").unlink()
    (path / "failure.json").write_text('{"message": ["It failed."]}')
    assert index.refresh()[0].problem == "It failed."
    path.rename(tmp_path / "moved")
    assert paths(index.refresh()) == ["moved"]


def test_a_clock_that_was_set_back_hides_nothing(tmp_path):
    future = time.time() + 86_400
    os.utime(tmp_path, (future, future))
    index = RunIndex(tmp_path)
    index.refresh()
    made_run(tmp_path, "run")
    os.utime(tmp_path, (future, future))
    assert paths(index.refresh()) == ["run"]
    os.utime(tmp_path / "run" / "environment.json", (future, future))
    assert index.refresh()[0].started_s == pytest.approx(future)


def test_jobs_without_a_directory_are_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("lorakit.runs.queue.start_supervisor", lambda job, root: None)
    about = {"task": "CAUSAL_LM", "model": "gpt"}
    job = RunQueue(tmp_path).add(["train", "recipe.yaml"], "next", about=about)
    made_run(tmp_path, "done", finished=True)
    queued, _ = RunIndex(tmp_path).refresh()
    assert (queued.path, queued.state, queued.task, queued.job) == (
        "next",
        "queued",
        "CAUSAL_LM",
        1,
    )
    (job.folder / "log.txt").write_text("Reading\nError: recipe.yaml: got 3.\nRun it again.\n")
    (job.folder / "process.json").write_text('{"pid": 1, "identity": "x", "started_s": 5.0}')
    (job.folder / "ended.json").write_text('{"exit_code": 2}')
    failed = RunIndex(tmp_path).refresh()[1]
    assert (failed.state, failed.problem) == ("failed", "recipe.yaml: got 3.\nRun it again.")
    (job.folder / "ended.json").write_text('{"exit_code": 0}')
    assert paths(RunIndex(tmp_path).refresh()) == ["done"]


def test_a_row_knows_how_its_job_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("lorakit.runs.queue.start_supervisor", lambda job, root: None)
    job = RunQueue(tmp_path).add(["train", "recipe.yaml"], "run")
    path = made_run(tmp_path, "run")
    now = time.time()

    def ended(code, ended_s):
        (job.folder / "ended.json").write_text(f'{{"exit_code": {code}, "ended_s": {ended_s}}}')
        (row,) = RunIndex(tmp_path).refresh()
        return row.state, row.problem

    assert ended(-9, now) == (
        "interrupted",
        "The process was killed, by a user or because memory ran out.",
    )
    (job.folder / "log.txt").write_text("Error: The disk is full.\n")
    assert ended(1, now) == ("failed", "The disk is full.")
    assert ended(1, now - 60) == ("interrupted", None)  # a terminal has resumed it since
    RunQueue(tmp_path).add_resume("run")
    assert RunIndex(tmp_path).refresh()[0].state == "queued"
    locked_by(path, os.getpid())
    assert RunIndex(tmp_path).refresh()[0].state == "running"


def test_runs_below_a_folder_of_recipes_are_found(tmp_path):
    for name in ("recipe.yaml", "search.yaml"):
        made_run(tmp_path / "project", "first")
        (tmp_path / "project" / name).write_text("model: m\n")
    assert [row.path for row in RunIndex(tmp_path).refresh()] == ["project/first"]


def test_a_name_that_is_not_utf8_is_a_row_that_says_so(tmp_path):
    made_run(tmp_path, "fine")
    (tmp_path / os.fsdecode(b"caf\xe9")).mkdir()
    rows = {row.path: row for row in RunIndex(tmp_path).refresh()}
    assert set(rows) == {"fine", r"caf\udce9"}
    assert "its name is not UTF-8" in rows[r"caf\udce9"].problem
    assert all(row.problem is None or row.problem.isprintable() for row in rows.values())

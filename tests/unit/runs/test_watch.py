import os

import pytest

from fixtures.run_folders import append, locked_by, step_row, write_run
from lorakit.errors import MissingFileError
from lorakit.runs import watch as module
from lorakit.runs.index import RunIndex
from lorakit.runs.jobs import JobFolder
from lorakit.runs.watch import RunWatch


def test_only_what_is_new_is_reported(tmp_path):
    run = write_run(tmp_path / "a", 20)
    watch = RunWatch(RunIndex(tmp_path), "a")
    seen = watch.look()
    assert (seen.has_metrics, seen.has_files) == (True, True)
    assert '{"event": "step", "step": 20,' in seen.output
    assert watch.state == "interrupted"
    seen = watch.look()
    assert not (seen.has_metrics or seen.has_files or seen.has_state or seen.output)
    append(run, step_row(21, 1.0))
    assert watch.look().has_metrics
    (run / "report.md").write_text("# a\n")
    assert watch.look().has_files


def test_a_checkpoint_is_an_entry_and_says_nothing_about_the_run(tmp_path, monkeypatch):
    run = write_run(tmp_path / "a", 20)
    watch = RunWatch(RunIndex(tmp_path), "a")
    watch.look()
    monkeypatch.setattr(module, "read_detail", None)
    (run / "checkpoint-20").mkdir()
    seen = watch.look()
    assert (seen.has_entries, seen.has_files) == (True, False)


def test_the_state_follows_the_process(tmp_path):
    run = write_run(tmp_path / "a")
    watch = RunWatch(RunIndex(tmp_path), "a")
    watch.look()
    locked_by(run, os.getpid())
    assert watch.look().has_state
    assert (watch.state, watch.is_active) == ("running", True)
    (run / ".lock").unlink()
    assert watch.look().has_state
    assert watch.state == "interrupted"


def test_a_job_that_waits_becomes_a_run(tmp_path):
    about = {"task": "SEQ_CLS", "model": "m"}
    job = JobFolder(tmp_path).create(["train"], "a", tmp_path, about)
    watch = RunWatch(RunIndex(tmp_path), "a")
    watch.look()
    assert (watch.state, watch.detail.text("model")) == ("queued", "m")
    job.log_file.write_text("Reading\n")
    assert watch.look().output == "Reading\n"
    write_run(tmp_path / "a")
    assert watch.look().has_files
    assert watch.detail.text("lora.r") == "4"


def test_a_trial_of_a_search_has_a_state(tmp_path):
    write_run(tmp_path / "search" / "trials" / "trial-001", is_finished=True)
    watch = RunWatch(RunIndex(tmp_path), "search/trials/trial-001")
    watch.look()
    assert watch.state == "finished"


def test_there_is_no_run(tmp_path):
    with pytest.raises(MissingFileError, match=r"no recipe\.yaml"):
        RunWatch(RunIndex(tmp_path), "a")


def test_a_deleted_run_is_empty(tmp_path):
    run = write_run(tmp_path / "a")
    watch = RunWatch(RunIndex(tmp_path), "a")
    watch.look()
    for name in ("recipe.yaml", "metrics.jsonl", "environment.json"):
        (run / name).unlink()
    with pytest.raises(MissingFileError):
        watch.look()


def test_an_exit_code_that_comes_after_the_end_is_noticed(tmp_path):
    write_run(tmp_path / "a")
    job = JobFolder(tmp_path).create(["train"], "a", tmp_path, {})
    (job.folder / "process.json").write_text('{"pid": 1, "identity": "another"}')
    watch = RunWatch(RunIndex(tmp_path), "a")
    watch.look()
    assert "was killed" in watch.problem  # as far as anybody knows yet
    (job.folder / "ended.json").write_text('{"exit_code": 143}')
    assert watch.look().has_state
    assert watch.problem is None

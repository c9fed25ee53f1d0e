"""A job as files: what is read of them."""

import json
import time

import pytest

from lorakit.runs.jobs import JobFolder


@pytest.fixture
def job(tmp_path):
    return JobFolder(tmp_path).create(["train", "a.yaml"], "out", tmp_path, {})


def read(job):
    return JobFolder(job.folder.parents[2]).get(job.number)


def test_a_job_that_waits_has_no_process(job):
    assert (job.state, job.pid, job.number) == ("queued", None, 1)
    assert job.words == ("train", "a.yaml")
    assert job.started_s == pytest.approx(time.time(), abs=30)


@pytest.mark.parametrize(
    ("code", "state"),
    [
        (0, "finished"),
        (1, "failed"),
        (2, "failed"),
        (143, "interrupted"),
        (130, "interrupted"),
        (-9, "interrupted"),
        (None, "interrupted"),
    ],
)
def test_the_exit_code_gives_the_state(job, code, state):
    (job.folder / "ended.json").write_text(json.dumps({"exit_code": code}))
    assert read(job).state == state


def test_a_process_that_is_gone_without_an_exit_code_was_killed(job):
    (job.folder / "process.json").write_text('{"pid": 1, "identity": "x", "started_s": 9.0}')
    assert read(job).state == "interrupted" and read(job).was_killed
    assert read(job).started_s == 9.0


def test_the_newest_job_of_a_run_counts(job, tmp_path):
    JobFolder(tmp_path).create(["train"], "out", tmp_path, {})
    assert JobFolder(tmp_path).of("out").number == 2
    assert JobFolder(tmp_path).of("other") is None
    assert JobFolder(tmp_path / "nowhere").all() == []

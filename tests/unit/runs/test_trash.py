"""Deleting a run moves it into the trash, and back."""

import os

import pytest

from fixtures.run_folders import made_run
from lorakit.errors import ConfigError, MissingFileError, OutputExistsError
from lorakit.recipes.directory_lock import locking_directory
from lorakit.runs.index import RunIndex
from lorakit.runs.jobs import JobFolder
from lorakit.runs.trash import Trash


def test_a_run_goes_into_the_trash_and_comes_back(tmp_path):
    made_run(tmp_path, "runs/a\nb", finished=True)
    trash = Trash(tmp_path)
    number = trash.delete("runs/a\nb")
    assert RunIndex(tmp_path).refresh() == []
    (kept,) = trash.runs()
    assert (kept.number, kept.origin) == (number, "runs/a\nb") and kept.size_bytes > 50
    assert trash.restore(number) == "runs/a\nb"
    assert RunIndex(tmp_path).refresh()[0].path == "runs/a\nb" and trash.runs() == []


def test_two_runs_of_one_path_lie_beside_each_other(tmp_path):
    trash = Trash(tmp_path)
    for _ in range(2):
        made_run(tmp_path, "a")
        trash.delete("a")
    assert [run.number for run in trash.runs()] == [2, 1]
    made_run(tmp_path, "a")
    with pytest.raises(OutputExistsError, match="something else is there now"):
        trash.restore(1)
    with pytest.raises(MissingFileError, match="No run 7 in the trash"):
        trash.restore(7)
    trash.empty()
    assert trash.runs() == [] and (tmp_path / "a").is_dir()


def test_a_run_that_is_written_to_stays(tmp_path):
    path = made_run(tmp_path, "a")
    with locking_directory(path), pytest.raises(OutputExistsError, match=f"process {os.getpid()}"):
        Trash(tmp_path).delete("a")
    assert path.is_dir()


@pytest.mark.parametrize("relative", ["..", ".", "", "/etc", "gone", "link"])
def test_nothing_else_is_deleted(tmp_path, relative):
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)
    with pytest.raises((ConfigError, MissingFileError)):
        Trash(root).delete(relative)
    assert tmp_path.is_dir() and root.is_dir()


def test_the_jobs_of_a_deleted_run_go_and_come_back_with_it(tmp_path):
    made_run(tmp_path, "a")
    trash, jobs = Trash(tmp_path), JobFolder(tmp_path)
    job = jobs.create(["train"], "a", tmp_path, {})
    (job.folder / "ended.json").write_text('{"exit_code": 143}')
    number = trash.delete("a")
    assert RunIndex(tmp_path).refresh() == []  # not the job, which had been interrupted
    other = jobs.create(["train"], "b", tmp_path, {})
    trash.restore(number)
    assert [one.number for one in jobs.all()] == [job.number, other.number]
    trash.delete("a")
    trash.empty()
    assert [one.name for one in jobs.path.iterdir()] == [other.folder.name]

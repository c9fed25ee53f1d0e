"""Reading the adapter that a recipe starts from."""

import shutil

import pytest

from lorakit.errors import AdapterFileError, MissingFileError
from lorakit.training.starting_point import StartingPoint


def test_a_recipe_without_one_has_none(recipe):
    assert StartingPoint.of(recipe()) is None


def test_a_run_its_adapter_and_a_checkpoint_are_taken(done, start):
    found = [
        StartingPoint.of(start(str(path)))
        for path in (done[0].run_dir, done[0].adapter_path, done[0].run_dir / "checkpoint-10")
    ]
    assert all(one.tokenizer == done[0].adapter_path for one in found)
    assert len({one.sha256 for one in found[:2]}) == 1
    assert found[0].config == found[2].config


def test_the_copy_of_a_run_is_used_if_it_is_there(start, tmp_path):
    found = StartingPoint.of(start())
    found.copy_to(tmp_path / "kept")
    kept = StartingPoint.of(start("/nowhere/x"), tmp_path / "kept")
    assert kept.directory == tmp_path / "kept" and kept.sha256 == found.sha256
    assert kept.tokenizer == tmp_path / "kept"
    assert kept.changed_note() == (
        "start_from '/nowhere/x' no longer exists; the run has a copy of it."
    )
    with pytest.raises(MissingFileError, match="Cannot start from start_from '/nowhere/x': No ad"):
        StartingPoint.of(start("/nowhere/x"), tmp_path / "none")


def test_a_parent_that_changes_while_it_is_copied_is_refused(done, start, tmp_path):
    shutil.copytree(done[0].adapter_path, tmp_path / "parent")
    found = StartingPoint.of(start(str(tmp_path / "parent")))
    assert found.changed_note() is None
    with (tmp_path / "parent/adapter_model.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(AdapterFileError, match="changed while the run was prepared"):
        found.copy_to(tmp_path / "copy")
    assert "has changed since the run started" in found.changed_note()

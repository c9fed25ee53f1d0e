import json
import math

import numpy as np
import pytest
import torch

from lorakit.errors import CheckpointError, MissingFileError, OutputExistsError
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory, find_adapter


@pytest.fixture
def recipe(tmp_path):
    data = {"train": "rows.csv"}
    return Recipe(model="m", task="SEQ_CLS", data=data, output=str(tmp_path / "runs" / "a"))


@pytest.fixture
def run(recipe):
    return RunDirectory.create(recipe.output, recipe)


def refusal(recipe):
    with pytest.raises(OutputExistsError) as caught:
        RunDirectory.create(recipe.output, recipe)
    return str(caught.value).replace(recipe.output, "OUT")


def test_a_new_run_holds_its_recipe_and_environment(run, recipe):
    assert sorted(p.name for p in run.path.iterdir()) == ["environment.json", "recipe.yaml"]
    assert [p.name for p in run.path.parent.iterdir()] == ["a"]  # no temporary left
    assert RunDirectory.open(run.path).recipe() == recipe
    facts = json.loads(run.environment_file.read_text())
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert not run.is_finished


def test_an_empty_directory_may_become_a_run(recipe, tmp_path):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    assert RunDirectory.create(recipe.output, recipe).recipe_file.exists()


def test_a_run_is_never_overwritten(run, recipe):
    assert refusal(recipe) == (
        "Cannot write to output OUT: it holds a run that has not finished, expected a new or "
        "empty directory. Continue it with `--resume`, or set another `output`."
    )
    run.adapter.mkdir()
    run.report_file.write_text("")
    assert refusal(recipe) == (
        "Cannot write to output OUT: it holds a finished run, expected a new or empty directory. "
        "Set another `output`."
    )


def test_other_files_are_never_mixed_with_a_run(recipe, tmp_path):
    place = tmp_path / "runs" / "a"
    place.mkdir(parents=True)
    for name in "dcba":
        (place / name).write_text("")
    assert "it holds other files (a, b, c, …), expected a new or empty" in refusal(recipe)
    for name in "dcba":
        (place / name).unlink()
    place.rmdir()
    place.write_text("")
    assert "it is a file, expected a new or empty directory" in refusal(recipe)
    below = recipe.model_copy(update={"output": str(place / "deep" / "run")})
    assert f"{place} is a file, expected a new or empty directory" in refusal(below)


def test_nothing_is_left_where_creating_fails(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Recipe, "to_yaml", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        RunDirectory.create(recipe.output, recipe)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_directory_without_a_run_is_reported(tmp_path):
    with pytest.raises(MissingFileError, match=r"No run at .*: there is no recipe\.yaml in it"):
        RunDirectory.open(tmp_path)
    with pytest.raises(MissingFileError, match="there is no such directory"):
        RunDirectory.open(tmp_path / "nowhere")


def test_an_adapter_that_is_not_there_is_told_from_a_file_and_a_folder(run, tmp_path):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "folder").mkdir()
    for name, found in (
        ("foldr", "there is no such directory. Check the path. Did you mean 'folder'? Name a run"),
        ("notes.txt", "it is a file. Name a run directory, or"),
        ("folder", "it has no adapter_config.json. Name a run directory, or"),
        ("runs/a", "it has no adapter_config.json. Train on with `--resume`, or"),
    ):
        with pytest.raises(MissingFileError) as caught:
            find_adapter(tmp_path / name)
        path = run.adapter if name == "runs/a" else tmp_path / name
        assert str(caught.value).startswith(f"No adapter at {path}: {found}")


def test_the_recipe_beside_an_adapter_is_its_own_only_in_a_run(run):
    for name in ("adapter", "start_from", "checkpoint-2", "of-peft"):
        (run.path / name).mkdir()
        (run.path / name / "adapter_config.json").touch()
        directory, recipe = find_adapter(run.path / name)
        assert directory == run.path / name
        assert (recipe is None) == (name == "of-peft")
    assert find_adapter(run.path)[0] == run.adapter


def test_metrics_are_one_json_object_a_line(run):
    run.append_metrics({"step": 1, "loss": np.float32(0.5)})
    run.append_metrics({"step": 2, "eval_auc": math.nan, "n": torch.tensor(3)})
    assert run.metrics_file.read_text() == (
        '{"step": 1, "loss": 0.5}\n{"step": 2, "eval_auc": null, "n": 3}\n'
    )


def test_a_line_torn_by_a_kill_is_tolerated_and_trimmed(run):
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]
    run.keep_metrics_until(2)
    run.append_metrics({"step": 3, "again": True})
    assert run.metrics() == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_resumed_run_evaluates_again_what_was_evaluated_after_its_last_step(run):
    for event in ("step", "summary", "evaluation"):
        run.append_metrics({"event": event, "step": 4})
    run.keep_metrics_until(4)
    assert run.metrics() == [{"event": "step", "step": 4}]


def test_a_damaged_line_is_an_error(run):
    run.metrics_file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 is not a JSON"):
        run.metrics()


@pytest.mark.parametrize("line", [b"5", b"null", b'"text"', b"\xff\xfe", b""])
def test_a_line_that_is_no_object_is_an_error(run, line):
    run.metrics_file.write_bytes(b'{"step": 1}\n' + line + b"\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: line 2 is not a JSON object"):
        run.metrics()


@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"processes": null}', "null"])
def test_a_damaged_environment_says_what_to_write(run, text):
    run.environment_file.unlink()
    if text is not None:
        run.environment_file.write_text(text)
    with pytest.raises(CheckpointError, match=r'environment\.json: .*Write {"processes": 1} into'):
        _ = run.processes


def test_what_a_kill_leaves_is_swept_and_nothing_else(run):
    ours = [".adapter.0a1b2c3d", ".metrics.jsonl.abcd0123", ".checkpoint-12.00000000"]
    ours += [".optimizer-state-x", ".seen-by-all-y", ".recipe.yaml.aaaaaaaa"]
    ours += [".reference.safetensors.0a1b2c3d"]
    mine = [".adapter", ".vscode.settings", ".adapter.0a1b2c3d4", ".gitignore", "adapter.0a1b2c3d"]
    mine += [".report.md.original"]
    for name in (*ours[1:], *mine):
        (run.path / name).touch()
    (run.path / ours[0]).mkdir(mode=0o700)
    (run.path / ours[0] / "adapter_config.json").touch()
    assert sorted(path.name for path in run.remove_leftovers()) == sorted(ours)
    kept = {path.name for path in run.path.iterdir()}
    assert kept == {*mine, "recipe.yaml", "environment.json"}


def test_what_a_kill_leaves_of_a_run_that_was_being_made_is_swept(recipe, tmp_path):
    (tmp_path / "runs" / ".a.0a1b2c3d").mkdir(parents=True)
    (tmp_path / "runs" / ".a.0a1b2c3d" / "recipe.yaml").touch()
    (tmp_path / "runs" / ".a.0a1b2c3d" / ".environment.json.0a1b2c3d").touch()
    (tmp_path / "runs" / ".a.mydiary0").mkdir()
    (tmp_path / "runs" / ".a.mydiary0" / "monday").touch()
    RunDirectory.create(recipe.output, recipe)
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == [".a.mydiary0", "a"]

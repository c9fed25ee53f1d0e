"""A run is used from another directory, after it was moved and its training rows are gone."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def moved(cli, tmp_path, tiny_distilbert_dir, cls_csv, monkeypatch):
    """A run that was trained with relative paths, then moved; other rows lie beside it."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    shutil.copytree(tiny_distilbert_dir, home / "base")
    shutil.copy(cls_csv, home / "rows.csv")
    shutil.copy(cls_csv, away / "other.csv")
    data = {"train": "rows.csv", "max_length": 32}
    recipe = home / "recipe.yaml"
    training = {"num_train_epochs": 1, "per_device_train_batch_size": 16, "learning_rate": 0.01}
    values = {"model": "base", "task": "SEQ_CLS", "data": data, "output": "run"}
    recipe.write_text(json.dumps({**values, "training": training}))
    monkeypatch.chdir(home)
    trained = cli("train", recipe)
    assert trained.exit_code == 0, trained.output
    (home / "run").rename(away / "run")
    monkeypatch.chdir(away)
    return away / "run"


def test_a_moved_run_is_used_from_elsewhere(cli, moved):
    home = moved.parent.parent / "home"
    whole = cli("evaluate", "run", "--data", "other.csv")
    assert whole.exit_code == 0, whole.output
    longer = cli("train", "run/recipe.yaml", "--resume", "training.num_train_epochs=2")
    assert longer.exit_code == 0, longer.output
    (home / "rows.csv").unlink()
    for words in (
        ("evaluate", "run", "--data", "other.csv"),
        ("evaluate", "run/adapter", "--data", "other.csv"),
        ("generate", "run", "a good film"),
        ("merge", "run", "merged"),
        ("inspect", "run"),
    ):
        result = cli(*words)
        assert result.exit_code == 0, (words, result.output)
    assert not (home / "run").exists()
    config = json.loads((moved / "adapter" / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]) == home / "base"


def test_rows_with_strange_labels_are_reported(cli, moved):
    (moved.parent.parent / "home" / "rows.csv").unlink()
    Path("strange.csv").write_text("text,label\na good film,odd\na bad film,odder\n")
    result = cli("evaluate", "run", "--data", "strange.csv")
    assert result.exit_code == 2
    assert "labels that the adapter was not trained on: got odd, odder, expected" in result.stderr


def test_what_is_split_off_the_training_rows_needs_them(cli, moved):
    (moved.parent.parent / "home" / "rows.csv").unlink()
    result = cli("evaluate", "run")
    assert result.exit_code == 2 and "rows.csv" in result.stderr

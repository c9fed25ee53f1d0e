"""The recipes of `lorakit init`."""

import json
import re

import pytest
import yaml
from typer.testing import CliRunner

from lorakit.cli.main import app
from lorakit.cli.recipe_template import TASKS, recipe_text
from lorakit.config import TaskType
from lorakit.training.recipe import Recipe

runner = CliRunner()


def test_there_is_a_template_for_every_task():
    assert set(TASKS) == {task.value for task in TaskType}


@pytest.mark.parametrize("task", TASKS)
def test_the_recipe_is_valid_and_every_key_is_explained(task, tmp_path):
    path = tmp_path / "my.yaml"
    result = runner.invoke(app, ["init", "--task", task.lower(), "-o", str(path)])
    assert result.exit_code == 0, result.stderr
    recipe = Recipe.load(path)
    assert recipe.task == task
    assert recipe.output == "runs/my"
    assert str(path) in result.stdout
    assert f"lorakit train {path} --dry-run" in result.stdout
    for line in path.read_text().splitlines():
        if re.match(r" *(# )?\w+: [^#]", line) and not line.endswith(("data:", "lora:")):
            assert re.search(r"\S  +# \w", line), line


@pytest.mark.parametrize("task", TASKS)
def test_the_recipe_stays_valid_with_every_commented_key_set(task, tmp_path):
    text = recipe_text(task, "recipe.yaml", "runs/recipe")
    everything = re.sub(r"(?m)^( *)# (\w+: .*  # )", r"\1\2", text)
    assert len(everything.splitlines()) == len(text.splitlines())
    assert "\n  # " not in everything.replace(f"  # {TASKS[task].rows}", "")
    # The example of one base's subset and revision cannot be looked up offline, only validated.
    path = tmp_path / "recipe.yaml"
    path.write_text(everything)
    assert Recipe.load(path).lora.use_rslora


def test_model_and_data_are_taken_and_quoted_where_yaml_needs_it(tmp_path):
    path = tmp_path / "recipe.yaml"
    words = [
        "init",
        "--task",
        "CAUSAL_LM",
        "-o",
        str(path),
        "--model",
        "./a: b",
        "--train",
        "#1.csv",
    ]
    assert runner.invoke(app, words).exit_code == 0
    values = yaml.safe_load(path.read_text())
    assert (values["model"], values["data"]["train"]) == ("./a: b", "#1.csv")


def test_an_existing_file_is_not_overwritten(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("mine")
    result = runner.invoke(app, ["init", "--task", "SEQ_CLS", "-o", str(path)])
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: Cannot write {path}: got a file that is already there, expected a new name. "
        "Choose another with --output, or move the old one away.\n"
    )
    assert path.read_text() == "mine"


def test_unknown_task_is_answered_with_the_nearest():
    result = runner.invoke(app, ["init", "--task", "seq-cls"])
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: Unknown task in --task: got 'seq-cls', expected SEQ_CLS, TOKEN_CLS, CAUSAL_LM, "
        "SEQ_2_SEQ_LM. Did you mean 'SEQ_CLS'?\n"
    )


def test_missing_directory_is_named(tmp_path):
    path = tmp_path / "none" / "recipe.yaml"
    result = runner.invoke(app, ["init", "--task", "SEQ_CLS", "-o", str(path)])
    assert result.exit_code == 2
    assert f"got no directory {path.parent}" in result.stderr


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 32768}, 1024),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({}, 1024),
        ([], 1024),
    ],
)
def test_rows_are_no_longer_than_the_named_model_takes(cli, tmp_path, config, length):
    (tmp_path / "config.json").write_text(json.dumps(config))
    output = tmp_path / "a b.yaml"
    result = cli("init", "--task", "CAUSAL_LM", "--model", tmp_path, "-o", output)
    assert result.exit_code == 0, result.output
    assert yaml.safe_load(output.read_text())["data"]["max_length"] == length
    assert f"lorakit train '{output}'" in result.stdout

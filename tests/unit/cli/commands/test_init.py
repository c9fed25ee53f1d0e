"""The recipes of `lorakit init`."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fixtures.layouts import CHATS, PROMPTED, REVIEWS, write_data
from lorakit.cli.main import app
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.template import TASKS

runner = CliRunner()


def test_model_and_data_are_taken_and_quoted_where_yaml_needs_it(tmp_path, monkeypatch):
    path = tmp_path / "recipe.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "#1.csv").write_text("text\nA fine film.\n")
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
        f"Error: Cannot write {path}: got a file that already exists, expected a new name. "
        "Choose another with --output, or move the old file away.\n"
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


def words_of(path):
    return yaml.safe_load(path.read_text())["data"]


@pytest.mark.parametrize("named", [[], ["--task", "SEQ_CLS"]])
def test_the_data_are_examined(cli, tmp_path, named):
    file, output = write_data(tmp_path, "reviews.csv", REVIEWS), tmp_path / "my.yaml"
    result = cli("init", "--data", file, "-o", output, *named)
    assert result.exit_code == 0, result.stderr
    assert Recipe.load(output).task == "SEQ_CLS"
    expected = {"text": "review", "label": "verdict", "max_length": 16}
    assert expected.items() <= words_of(output).items()
    assert "40 examples" in output.read_text()


def test_lengths_are_counted_and_kept_to_the_models_positions(cli, tmp_path, tiny_llama_dir):
    texts = [{"text": "word " * n} for n in (3, 500, 9)]
    file = write_data(tmp_path, "texts.jsonl", texts)
    limit = json.loads((Path(tiny_llama_dir) / "config.json").read_text())[
        "max_position_embeddings"
    ]
    output = tmp_path / "my.yaml"
    result = cli("init", "--data", file, "-o", output, "--model", tiny_llama_dir)
    assert result.exit_code == 0, result.stderr
    assert words_of(output)["max_length"] == limit < 500
    assert f"longer than {limit} is cut" in result.stdout
    assert "the longest has up to " in result.stdout


@pytest.mark.parametrize("chats", [CHATS, PROMPTED])
def test_the_tokens_of_a_chat_are_those_of_its_template(cli, tmp_path, chats):
    from lorakit.quickstart.model_files import base_model_path

    file, output = write_data(tmp_path, "chats.jsonl", chats), tmp_path / "my.yaml"
    result = cli("init", "--data", file, "-o", output, "--model", base_model_path())
    assert result.exit_code == 0, result.stderr
    dry = cli("train", output, "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    longest = max(int(count) for count in re.findall(r"(\d+) tokens;", dry.stdout))
    assert f"the longest has up to {longest} tokens" in result.stdout


def test_a_task_that_does_not_fit_is_refused(cli, tmp_path):
    file, output = write_data(tmp_path, "a.jsonl", CHATS), tmp_path / "my.yaml"
    result = cli("init", "--data", file, "-o", output, "--task", "SEQ_CLS")
    assert result.exit_code == 2
    assert "They look like those of --task CAUSAL_LM." in result.stderr
    assert not output.exists()


def test_a_file_that_is_not_there_is_answered_as_by_train(cli, tmp_path):
    result = cli("init", "--data", tmp_path / "no.csv", "-o", tmp_path / "my.yaml")
    assert result.exit_code == 2
    assert "No data in data.train: got" in result.stderr


def test_column_names_cannot_break_the_recipe(cli, tmp_path):
    examples = [{"a\n# text: x": f"{n} cats", "label": "yz"[n % 2]} for n in range(8)]
    file, output = write_data(tmp_path, "odd.jsonl", examples), tmp_path / "my.yaml"
    assert cli("init", "--data", file, "-o", output).exit_code == 0
    assert words_of(output)["text"] == "a\n# text: x"


def test_without_task_and_data_the_tasks_are_named(cli, tmp_path):
    result = cli("init", "-o", tmp_path / "my.yaml")
    assert result.exit_code == 2
    assert "No task: got no --task and no --data, expected one of SEQ_CLS" in result.stderr


@pytest.mark.parametrize("task", TASKS)
def test_the_recipe_is_valid_and_every_key_is_explained(cli, task, tmp_path):
    path = tmp_path / "my.yaml"
    result = cli("init", "--task", task.lower(), "-o", path)
    assert result.exit_code == 0, result.stderr
    recipe = Recipe.load(path)
    assert recipe.task == task
    assert recipe.output == "runs/my"
    assert str(path) in result.stdout
    assert f"lorakit train {path} --dry-run" in result.stdout
    for line in path.read_text().splitlines():
        if re.match(r" *(# )?\w+: [^#]", line) and not line.endswith(("data:", "lora:")):
            assert re.search(r"\S  +# \w", line), line


def test_a_second_round_takes_task_and_model_from_the_adapter(done, tmp_path):
    path = tmp_path / "second.yaml"
    words = ["init", "--start-from", str(done[0].run_dir), "-o", str(path)]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.output
    assert f"starting from {done[0].run_dir}" in " ".join(result.stdout.split())
    recipe = Recipe.load(path)
    assert (recipe.task, recipe.start_from) == ("CAUSAL_LM", str(done[0].run_dir))
    assert recipe.model == Recipe.load(done[0].run_dir / "recipe.yaml").model
    assert recipe.lora.model_fields_set == set() and recipe.training["learning_rate"] == 2e-4
    everything = re.sub(r"(?m)^( *)# (\w+: .*  # )", r"\1\2", path.read_text())
    path.write_text(everything.replace("start_from: runs/first", ""))
    assert Recipe.load(path).lora.freeze_lora_a


def test_a_second_round_needs_an_adapter_of_the_task(done, tmp_path):
    words = ["init", "-o", str(tmp_path / "x.yaml"), "--start-from"]
    result = runner.invoke(app, [*words, str(tmp_path)])
    assert result.exit_code == 2 and "No adapter at" in result.stderr
    result = runner.invoke(app, [*words, str(done[0].run_dir), "--task", "SEQ_CLS"])
    assert result.exit_code == 2
    assert "Another task in --task: got SEQ_CLS, expected CAUSAL_LM" in result.stderr


def test_an_objective_gives_its_task(tmp_path):
    path = tmp_path / "recipe.yaml"
    result = runner.invoke(app, ["init", "--objective", "reward", "-o", str(path)])
    assert result.exit_code == 0
    values = yaml.safe_load(path.read_text())
    assert (values["task"], values["objective"]) == ("SEQ_CLS", {"type": "reward"})


def test_an_unknown_objective_and_one_of_another_task_are_refused():
    result = runner.invoke(app, ["init", "--objective", "dpu"])
    assert result.exit_code == 2
    assert "got 'dpu', expected dpo, kto, reward. Did you mean 'dpo'?" in result.stderr
    result = runner.invoke(app, ["init", "--objective", "kto", "--task", "SEQ_CLS"])
    assert result.exit_code == 2
    assert "--objective kto does not fit --task SEQ_CLS: expected CAUSAL_LM." in result.stderr


def test_preferences_in_a_file_give_the_objective(tmp_path):
    data, path = tmp_path / "answers.jsonl", tmp_path / "recipe.yaml"
    rows = [{"prompt": f"Say {n}.", "chosen": " Yes.", "rejected": " No."} for n in range(9)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = runner.invoke(app, ["init", "--data", str(data), "-o", str(path)])
    assert result.exit_code == 0
    assert "A recipe for CAUSAL_LM with the objective dpo" in result.stdout
    values = yaml.safe_load(path.read_text())
    assert values["objective"]["type"] == "dpo" and values["data"]["format"] == "preference"
    assert values["data"]["max_length"] < 64
    result = runner.invoke(
        app, ["init", "--data", str(data), "--objective", "kto", "-o", str(tmp_path / "b.yaml")]
    )
    assert result.exit_code == 2
    assert "change the line to `objective: {type: dpo}`" in result.stderr

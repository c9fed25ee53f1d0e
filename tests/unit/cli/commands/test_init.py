"""The recipes of `lorakit init`."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lorakit.cli.main import app
from lorakit.recipes.recipe import Recipe

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


REVIEWS = "id,review,verdict,stars\n" + "".join(
    f"{i},The {'film' if i % 2 else 'book'} was number {i} of many.,{'good' if i % 2 else 'bad'},"
    f"{i % 5}\n"
    for i in range(40)
)
CHATS = [
    {"conversations": [{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": "Yes."}]}
    for n in range(9)
]
PROMPTED = [
    {
        "prompt": [{"role": "user", "content": f"{n}?"}],
        "completion": [{"role": "assistant", "content": "Yes, it is so."}],
    }
    for n in range(9)
]
TAGGED = [{"tokens": ["Ada", "wrote"], "ner_tags": ["B-PER", "O"]} for _ in range(6)]
PAIRS = [
    {"premise": f"{n} cats sleep.", "hypothesis": "Cats sleep.", "label": n % 3} for n in range(30)
]
SHAPES = {
    # name: (file, contents, task, what the data section says)
    "labels": (
        "reviews.csv",
        REVIEWS,
        "SEQ_CLS",
        {"text": "review", "label": "verdict", "max_length": 16},
    ),
    "pairs": (
        "pairs.jsonl",
        PAIRS,
        "SEQ_CLS",
        {"text": "premise", "text_pair": "hypothesis", "label": "label"},
    ),
    "chats": ("chats.jsonl", CHATS, "CAUSAL_LM", {"messages": "conversations"}),
    "prompts of messages": (
        "asked.jsonl",
        PROMPTED,
        "CAUSAL_LM",
        {"format": "prompt_completion"},
    ),
    "prompts": (
        "asked.jsonl",
        [{"question": f"{n}?", "answer": "Yes, it is so."} for n in range(9)],
        "CAUSAL_LM",
        {"format": "prompt_completion", "prompt": "question", "completion": "answer"},
    ),
    "alpaca": (
        "alpaca.json",
        [{"instruction": f"Say {n}.", "input": "", "output": "Yes."} for n in range(9)],
        "CAUSAL_LM",
        {"format": "alpaca"},
    ),
    "texts": (
        "texts.jsonl",
        [{"story": f"Once upon a time {n} cats slept."} for n in range(9)],
        "CAUSAL_LM",
        {"format": "text", "text": "story"},
    ),
    "tags": (
        "tags.jsonl",
        TAGGED,
        "TOKEN_CLS",
        {"tokens": "tokens", "tags": "ner_tags"},
    ),
    "summaries": (
        "news.jsonl",
        [{"article": f"Cats slept {n} times. " * 9, "highlights": "Cats."} for n in range(9)],
        "SEQ_2_SEQ_LM",
        {"source": "article", "target": "highlights", "max_target_length": 8},
    ),
}


def written(folder, name, contents):
    path = folder / name
    if isinstance(contents, str):
        path.write_text(contents)
    elif name.endswith(".json"):
        path.write_text(json.dumps(contents))
    else:
        path.write_text("".join(json.dumps(example) + "\n" for example in contents))
    return path


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_named", [False, True])
def test_the_data_are_looked_into(cli, tmp_path, shape, is_named):
    name, contents, task, expected = SHAPES[shape]
    file, output = written(tmp_path, name, contents), tmp_path / "my.yaml"
    named = ["--task", task] if is_named else []
    result = cli("init", "--data", file, "-o", output, *named)
    assert result.exit_code == 0, result.stderr
    recipe = Recipe.load(output)
    assert recipe.task == task
    assert expected.items() <= words_of(output).items()
    assert f"{len(contents) if isinstance(contents, list) else 40} examples" in output.read_text()


def test_lengths_are_counted_and_kept_to_the_models_positions(cli, tmp_path, tiny_llama_dir):
    texts = [{"text": "word " * n} for n in (3, 500, 9)]
    file = written(tmp_path, "texts.jsonl", texts)
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

    file, output = written(tmp_path, "chats.jsonl", chats), tmp_path / "my.yaml"
    result = cli("init", "--data", file, "-o", output, "--model", base_model_path())
    assert result.exit_code == 0, result.stderr
    dry = cli("train", output, "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    longest = max(int(count) for count in re.findall(r"(\d+) tokens;", dry.stdout))
    assert f"the longest has up to {longest} tokens" in result.stdout


@pytest.mark.parametrize(
    ("name", "contents", "task", "said"),
    [
        ("a.jsonl", CHATS, "SEQ_CLS", "They look like those of --task CAUSAL_LM."),
        ("a.csv", REVIEWS, "TOKEN_CLS", "They look like those of --task SEQ_CLS."),
        ("a.jsonl", TAGGED, "SEQ_2_SEQ_LM", "They look like those of --task TOKEN_CLS."),
        ("a.csv", "a,b\n1,x\n2,y\n3,z\n", None, "Name it with --task"),
        ("a.csv", "text,label\na,0.31\nb,0.7\nc,0.2\n", "SEQ_CLS", "Regression is not built"),
        ("a.csv", "text,label\na,x\nb,\nc,x\nd,y\n", None, "Labels are missing"),
        ("a.csv", "text,label\na,x\n,y\nc,x\nd,y\n", None, "is empty in example 2"),
        ("a.csv", "text,label\na,x,2\n", None, "has 3 cells"),
        ("a.csv", "", None, "No examples in"),
        ("a.jsonl", "{\n", None, "expected one JSON object"),
        ("a.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}], None, "Preference data"),
        ("a.txt", "text", None, "expected one of .csv"),
    ],
)
def test_what_does_not_fit_or_cannot_be_read_is_said(cli, tmp_path, name, contents, task, said):
    file, output = written(tmp_path, name, contents), tmp_path / "my.yaml"
    named = ["--task", task] if task else []
    result = cli("init", "--data", file, "-o", output, *named)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not output.exists()


def test_a_file_that_is_not_there_is_answered_as_by_train(cli, tmp_path):
    result = cli("init", "--data", tmp_path / "no.csv", "-o", tmp_path / "my.yaml")
    assert result.exit_code == 2
    assert "No data in data.train: got" in result.stderr


def test_column_names_cannot_break_the_recipe(cli, tmp_path):
    examples = [{"a\n# text: x": f"{n} cats", "label": "yz"[n % 2]} for n in range(8)]
    file, output = written(tmp_path, "odd.jsonl", examples), tmp_path / "my.yaml"
    assert cli("init", "--data", file, "-o", output).exit_code == 0
    assert words_of(output)["text"] == "a\n# text: x"


def test_without_task_and_data_the_tasks_are_named(cli, tmp_path):
    result = cli("init", "-o", tmp_path / "my.yaml")
    assert result.exit_code == 2
    assert "No task: got no --task and no --data, expected one of SEQ_CLS" in result.stderr

"""One run directory: its facts, and its state from files and process ids."""

import os
import subprocess
import sys

import pytest

from fixtures.run_folders import evaluation, locked_by, logged, made_run
from lorakit.runs.run_summary import is_run, read_facts, signature, state_of


def state(path):
    return state_of(path, read_facts(path))


def test_facts_come_from_the_recipe_and_the_end_of_the_log(tmp_path):
    rows = [
        evaluation(10, eval_loss=0.7, eval_accuracy=0.5),
        *(logged(step, loss=0.1, train_tokens_per_s=900.0 + step) for step in range(11, 4000)),
        evaluation(4000, eval_loss=0.3, eval_accuracy=0.875),
    ]
    facts = read_facts(made_run(tmp_path, "run", rows=rows))
    assert (facts.task, facts.base, facts.problem) == ("SEQ_CLS", "bases/tiny", None)
    assert facts.progress == {
        "step": 4000,
        "wall_s": 6000.0,
        "tokens_per_s": 4899.0,
        "metric": "eval_accuracy",
        "value": 0.875,
    }


def test_the_last_evaluation_is_found_far_from_the_end(tmp_path):
    rows = [evaluation(1, eval_loss=0.7), *(logged(step, loss=0.1) for step in range(2, 6000))]
    assert read_facts(made_run(tmp_path, "run", rows=rows)).progress["value"] == 0.7


def test_the_recipe_may_choose_the_metric(tmp_path):
    path = made_run(tmp_path, "run", rows=[evaluation(1, eval_loss=0.7, eval_f1=0.6)])
    with (path / "recipe.yaml").open("a") as file:
        file.write("training: {metric_for_best_model: loss}\n")
    assert read_facts(path).progress["metric"] == "eval_loss"


def test_states_come_from_files(tmp_path):
    assert state(made_run(tmp_path, "a", finished=True)) == ("finished", None)
    broken = made_run(tmp_path, "b")
    assert state(broken) == ("interrupted", None)
    (broken / "failure.json").write_text('{"message": ["The loss is NaN."]}')
    assert state(broken) == ("failed", "The loss is NaN.")
    locked_by(broken, os.getpid())
    assert state(broken) == ("running", None)


def test_a_killed_process_and_another_one_with_its_id_do_not_run(tmp_path):
    path = made_run(tmp_path, "run")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        locked_by(path, process.pid)
        assert state(path)[0] == "running"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # nobody has noticed its end
        assert state(path)[0] == "interrupted"
    locked_by(path, os.getpid(), identity="an earlier process with this id")
    assert state(path)[0] == "interrupted"


def test_a_process_on_another_machine_cannot_be_seen(tmp_path):
    path = made_run(tmp_path, "run")
    locked_by(path, 1, host="far\x1b[31m")
    word, sentence = state(path)
    assert word == "running" and "which cannot be seen from here" in sentence
    assert "\x1b" not in sentence and "delete" in sentence


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("recipe.yaml", "model: [", "line 1, column 9"),
        ("recipe.yaml", "", "got an empty file"),
        ("recipe.yaml", "model: m\n", "got no task, data, output"),
        ("recipe.yaml", "model: m\ntask: X\ndata: {}\noutput: o\n", "got task 'X'"),
        ("recipe.yaml", "model: m\ntask: [X]\ndata: {}\noutput: o\n", "got task ['X']"),
        ("metrics.jsonl", "not JSON\n", "is not a JSON object; delete that line"),
        ("metrics.jsonl", "[1]\n", "is not a JSON object"),
        ("notes.json", "[", "notes.json"),
    ],
)
def test_what_is_damaged_is_said_with_its_file(tmp_path, name, text, message):
    path = made_run(tmp_path, "run", finished=True)
    (path / name).write_text(text)
    word, sentence = state(path)
    assert word == "damaged" and message in sentence and name in sentence


def test_an_incomplete_last_line_is_not_damage(tmp_path):
    path = made_run(tmp_path, "run", rows=[logged(3, loss=0.5)])
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "st')
    assert read_facts(path).progress["step"] == 3
    assert state(path)[0] == "interrupted"


def test_a_signature_changes_with_each_file(tmp_path):
    path = made_run(tmp_path, "run")
    seen = {signature(path)}
    for name in ("metrics.jsonl", "report.md", "failure.json", "notes.json", "recipe.yaml"):
        (path / name).write_text(f"changed {name}")
        seen.add(signature(path))
    assert len(seen) == 6


def test_a_remnant_has_a_log_but_no_recipe():
    assert is_run({"metrics.jsonl", "checkpoint-3"})
    assert is_run({"metrics.jsonl", "environment.json"})
    assert not is_run({"metrics.jsonl"}) and not is_run({"environment.json"})


def test_a_recipe_alone_is_no_run():
    assert is_run({"recipe.yaml", "environment.json"}) and is_run({"recipe.yaml", "checkpoint-3"})
    assert is_run({"search.yaml", "trials"}) and is_run({"study.yaml", "trials"})
    recipes = {"recipe.yaml", "search.yaml", "study.yaml", "train.csv"}
    assert not is_run(recipes)

"""`lorakit train`: what it says, writes and refuses."""

import json
import shlex
from types import SimpleNamespace

import pytest
import typer
import yaml

from fixtures.printed import flat
from lorakit.cli.commands.train import stopping_on_signals
from lorakit.cli.views.result import show_result
from lorakit.cli.views.training import RunView


def test_it_says_what_it_trains_shows_progress_and_ends_with_the_files(cls_training):
    run, result = cls_training
    words = flat(result.stdout)
    assert "q_lin Linear 2 32 32 8 1 1,024" in words
    assert "trained in full: pre_classifier, classifier" in words
    assert "training examples 43 validation examples 5" in words
    assert "step 1/3 epoch 0.33 loss" in words
    assert "after epoch 1: loss" in words
    assert "validation accuracy" in words
    assert result.stderr == ""
    written = result.stdout.partition("\nWrote\n")[2].partition("\n\n")[0]
    paths = [line.split("  (")[0].strip() for line in written.splitlines()]
    assert f"{run}/adapter/" in paths
    assert f"{run}/report.md" in paths and f"{run}/verdict.json" in paths
    for path in paths:
        assert (run / path).exists()


def test_it_says_which_adapter_was_kept_if_it_is_not_the_last(tmp_path, capsys):
    rows = [
        {"event": "evaluation", "step": step, "epoch": step / 4, "eval_loss": loss, "wall_s": 1.0}
        for step, loss in ((4, 0.5), (8, 0.25), (12, 0.75))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = SimpleNamespace(steps=12, wall_s=1.0, train_loss=1.0, run_dir=tmp_path, verdict=None)
    result.adapter_path, result.throughput = tmp_path, None
    for loss, said in ((0.25, True), (0.75, False)):
        result.metrics = {"eval_loss": loss}
        show_result(result)  # type: ignore[arg-type]
        sentence = "kept: the adapter of epoch 2, the best on the validation examples"
        assert (sentence in capsys.readouterr().out) == said


def test_the_next_commands_are_real_ones(cli, cls_training):
    _, result = cls_training
    commands = [
        shlex.split(line)[1]
        for line in result.stdout.partition("\nNext\n")[2].splitlines()
        if line.startswith("  lorakit ")
    ]
    assert commands == ["generate", "evaluate", "inspect", "merge"]
    assert all(cli(command, "--help").exit_code == 0 for command in commands)


def test_a_second_run_into_the_same_directory_is_refused(cli, cls_training):
    run, _ = cls_training
    before = (run / "metrics.jsonl").read_bytes()
    result = cli("train", run.parent / "recipe.yaml")
    assert result.exit_code == 2
    assert result.stderr == (
        f"Error: Cannot write to output {run}: it holds a finished run, expected a new or empty "
        "directory. Set another `output`.\n"
    )
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_dry_run_shows_the_rows_and_writes_nothing(cli, cls_recipe):
    before = set(cls_recipe.parent.iterdir())
    result = cli("train", cls_recipe, "lora.r=4", "--dry-run")
    assert result.exit_code == 0, result.stderr
    words = flat(result.stdout)
    assert "q_lin Linear 2 32 32 4 2 512" in words
    assert "dtypes: factors float32, base float32" in words
    assert "products in float32" in words
    assert "Training: 3 optimizer steps" in words
    assert "learning_rate 0.01" in words
    assert "labels: negative, positive" in words
    assert "1. 7 tokens; label: " in words
    assert result.stdout.count("[CLS]") == 2
    assert result.stdout.endswith(f"lorakit train {cls_recipe} lora.r=4  # trains\n") or (
        f"\n  lorakit train {cls_recipe} lora.r=4\n" in result.stdout
    )
    assert set(cls_recipe.parent.iterdir()) == before


def test_a_dry_run_marks_what_counts_in_the_loss(cli, tiny_llama_dir, prompt_jsonl, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    values = {
        "model": tiny_llama_dir,
        "task": "CAUSAL_LM",
        "data": {"train": prompt_jsonl, "max_length": 64},
        "output": str(tmp_path / "run"),
    }
    recipe.write_text(yaml.safe_dump(values))
    result = cli("train", recipe, "--dry-run")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    marks = next(line for line in lines if set(line) == {" ", "^"})
    tokens = lines[lines.index(marks) - 1]
    first = marks.index("^")
    assert "grass ?" in tokens[:first]
    assert tokens[first:].endswith("<|end|>")


def test_interrupted_training_exits_130_and_resumes(cli, cls_recipe, monkeypatch):
    ordinary = RunView.__call__

    def interrupt(view, event, payload):
        ordinary(view, event, payload)
        if event == "checkpoint" and payload["step"] == 2:
            raise KeyboardInterrupt

    words = ["train", cls_recipe, "training.save_strategy=steps", "training.save_steps=1"]
    words += ["training.eval_strategy=steps", "training.eval_steps=1"]
    monkeypatch.setattr(RunView, "__call__", interrupt)
    result = cli(*words)
    assert result.exit_code == 130
    again = f"lorakit {shlex.join(map(str, words))} --resume"
    assert result.stderr == (
        f"Interrupted. Resume from the last complete checkpoint with: {again}\n"
    )
    monkeypatch.undo()
    resumed = cli(*shlex.split(again)[1:])
    assert resumed.exit_code == 0, resumed.stderr
    assert "resuming from" in resumed.stdout
    assert "checkpoint-2" in resumed.stdout
    lines = (cls_recipe.parent / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["step"] for row in rows if row["event"] == "step"] == [1, 2, 3]


def test_interrupted_before_anything_was_written_it_promises_no_resume(
    cli, cls_recipe, monkeypatch
):
    def interrupt(view, event, payload):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunView, "__call__", interrupt)
    result = cli("train", cls_recipe)
    assert (result.exit_code, result.stderr) == (130, "Interrupted. Nothing has been written.\n")


def test_what_it_says_of_an_interrupted_run_is_so(tmp_path, capsys):
    def said():
        with (
            pytest.raises(typer.Exit),
            stopping_on_signals(view, "lorakit train a.yaml"),
        ):
            raise KeyboardInterrupt
        return capsys.readouterr().err.removeprefix("Interrupted. ").strip()

    view = RunView()
    view.path = tmp_path / "run"
    again = "with: lorakit train a.yaml --resume"
    assert said() == f"Nothing is left of the run: {view.path} has been deleted or moved."
    checkpoint = view.path / "checkpoint-4"
    checkpoint.mkdir(parents=True)
    (view.path / "recipe.yaml").touch()
    assert said() == f"No checkpoint is complete; start over {again}"
    (checkpoint / "manifest.json").touch()
    assert said() == f"Resume from the last complete checkpoint {again}"
    with pytest.raises(BrokenPipeError), stopping_on_signals(view, "lorakit train a.yaml"):
        raise BrokenPipeError
    ended = "The program that read this output has ended. Resume from the last complete checkpoint"
    assert capsys.readouterr().err == f"{ended} {again}\n"


def csv_of(directory, text):
    path = directory / "rows.csv"
    path.write_text(text)
    return f"data.train={path}"


# Every input a user gets wrong: the overrides, and what the message must say.
BAD = {
    "unknown key": (["lora.rnk=4"], "unknown key 'lora.rnk'. Did you mean"),
    "unknown training key": (["training.learnin_rate=1"], "Did you mean 'learning_rate'?"),
    "wrong type": (["lora.r=eight"], "lora.r: got 'eight'"),
    "no key=value": (["lora.r"], "got 'lora.r', expected key=value"),
    "several problems": (["lora.r=0", "modle=x"], "2 problems"),
    "missing model": (["model=no-such-dir/model"], "no-such-dir/model"),
    "missing data": (["data.train=no-such.csv"], "no-such.csv"),
    "missing column": (["data.text=txt"], "txt"),
    "target that matches nothing": (
        ["lora.target_modules=[q_porj]"],
        "No module matched target_modules=['q_porj']",
    ),
    "rank larger than the layer": (["lora.r=64"], "64"),
    "longer than the model's limit": (["data.max_length=4096"], "4096"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_a_user_gets_wrong_is_one_message_and_exit_code_2(name, cli, cls_recipe):
    overrides, expected = BAD[name]
    result = cli("train", cls_recipe, *overrides)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert expected in result.stderr
    assert "Traceback" not in result.stderr
    assert "--debug" not in result.stderr
    assert not (cls_recipe.parent / "run").exists()


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("text,label\n", "got 0, expected at least 1"),
        ("body,label\ngood,positive\nbad,negative\n", "body, label"),
    ],
)
def test_data_that_do_not_fit_are_explained(rows, expected, cli, cls_recipe, tmp_path):
    result = cli("train", cls_recipe, csv_of(tmp_path, rows))
    assert result.exit_code == 2, result.output
    assert expected in result.stderr
    assert not (cls_recipe.parent / "run").exists()


def test_a_label_unseen_in_training_is_named(cli, cls_recipe, tmp_path):
    unseen = tmp_path / "validation.csv"
    unseen.write_text("text,label\ngood,neutral\n")
    result = cli("train", cls_recipe, f"data.validation={unseen}")
    assert result.exit_code == 2, result.output
    assert "neutral" in result.stderr


def test_a_missing_recipe_is_answered_with_the_nearest(cli, cls_recipe):
    result = cli("train", cls_recipe.with_name("recipes.yaml"))
    assert result.exit_code == 2
    assert "Did you mean 'recipe.yaml'?" in result.stderr


def test_resuming_what_was_never_begun_is_an_error(cli, cls_recipe):
    result = cli("train", cls_recipe, "--resume")
    assert result.exit_code == 2
    assert "no such directory" in result.stderr


def test_the_recipe_of_a_run_resumes_the_output_that_is_named(cli, cls_training, tmp_path):
    run, _ = cls_training
    recipe, other = run / "recipe.yaml", tmp_path / "other"
    assert f"Nothing to resume in {run}: " in cli("train", recipe, "--resume").stderr
    result = cli("train", recipe, f"output={other}", "--resume")
    assert result.exit_code == 2 and str(other) in result.stderr and str(run) not in result.stderr


def test_training_that_cannot_learn_exits_1_and_leaves_nothing(cli, cls_recipe):
    result = cli("train", cls_recipe, "training.learning_rate=1e30", "training.eval_strategy=no")
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("Error: ")
    assert "loss" in result.stderr or "gradient" in result.stderr
    assert not (cls_recipe.parent / "run").exists()


def test_an_address_is_of_use_with_ray_alone(cli, cls_recipe):
    result = cli("train", cls_recipe, "--address", "localhost:6379")
    assert result.exit_code == 2
    assert result.stderr == ("Error: --address requires --ray N: got no --ray. Add --ray N.\n")


def test_ray_and_a_launcher_exclude_each_other(cli, cls_recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    result = cli("train", cls_recipe, "--ray", "2")
    assert result.exit_code == 2
    assert "Use one or the other." in result.stderr


def test_ray_that_is_not_there_is_an_error_at_once(cli, cls_recipe):
    result = cli("train", cls_recipe, "--ray", "2", "--address", "localhost:1")
    assert result.exit_code == 2
    assert "No Ray cluster answers at --address localhost:1" in result.stderr
    assert not (cls_recipe.parent / "run").exists()


def test_a_dry_run_says_what_it_starts_from(cli, cls_recipe, cls_training):
    run, _ = cls_training
    result = cli("train", cls_recipe, f"start_from={run}", "lora.r=3", "--dry-run")
    assert result.exit_code == 0, result.output
    assert f"Training starts from the adapter of {run} (sha256 " in flat(result.output)
    assert "Its rank is changed from 8 to 3, which loses " in flat(result.output)
    missing = cli("train", cls_recipe, "start_from=/nowhere/x", "--dry-run")
    assert missing.exit_code == 2
    assert "Cannot start from start_from '/nowhere/x': No adapter at" in flat(missing.output)

"""`lorakit evaluate`."""

import json
import shutil

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training.evaluation import Evaluation


def test_a_run_is_measured_on_its_own_validation_rows(cli, cls_run):
    result = cli("evaluate", cls_run)
    assert result.exit_code == 0, result.stderr
    assert f"Measuring {cls_run}/adapter on 5 examples" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["adapter"] in lines
    assert any(line[:1] == ["accuracy"] and len(line) == 2 for line in lines)
    assert "Next" in result.stdout


def test_other_data_and_the_base_beside_it(cli, cls_run, cls_csv):
    result = cli("evaluate", cls_run, "--data", cls_csv, "--rows", 20, "--base")
    assert result.exit_code == 0, result.stderr
    assert "on 20 examples" in result.stdout
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["adapter", "base", "alone"] in lines
    assert any(line[:1] == ["accuracy"] and len(line) == 3 for line in lines)


def test_a_class_that_the_base_alone_predicts_has_a_row(cli, cls_run, monkeypatch):
    found = Evaluation({"eval_f1": 1.0, "eval_f1_no": 1.0}, {"eval_f1_yes": 0.25}, None, None)
    monkeypatch.setattr("lorakit.training.evaluation.measure", lambda *_, **__: found)
    lines = [line.split() for line in cli("evaluate", cls_run, "--base").stdout.splitlines()]
    assert ["f1", "no", "1"] in lines and ["f1", "yes", "0.25"] in lines


def test_an_adapter_alone_needs_a_recipe(cli, cls_run, tmp_path):
    alone = tmp_path / "alone" / "adapter"
    shutil.copytree(cls_run / "adapter", alone)
    result = cli("evaluate", alone)
    assert result.exit_code == 2
    assert "there is no recipe.yaml beside it" in result.stderr
    result = cli("evaluate", alone, "data.max_length=16")
    assert result.exit_code == 2
    assert "expected one. Give it with --recipe." in result.stderr
    result = cli("evaluate", alone, "--recipe", cls_run / "recipe.yaml", "data.max_length=16")
    assert result.exit_code == 0, result.stderr


def test_changes_without_effect_are_refused(cli, cls_run):
    result = cli("evaluate", cls_run, "lora.r=2", "data.max_length=16", "output=elsewhere")
    assert result.exit_code == 2
    assert "Cannot apply the overrides: got lora.r=2, output=elsewhere, expected" in result.stderr


def test_missing_data_are_named(cli, cls_run):
    result = cli("evaluate", cls_run, "--data", "no-such.csv")
    assert result.exit_code == 2
    assert "no-such.csv" in result.stderr


def test_a_quantized_run_is_measured_on_its_quantized_base_or_another(cli, quantized_run):
    result = cli("evaluate", quantized_run, "--base")
    assert result.exit_code == 0, result.stderr
    adapted = result.stdout
    result = cli("evaluate", quantized_run, "quantization=null")
    assert result.exit_code == 0, result.stderr
    assert "accuracy" in adapted and "accuracy" in result.stdout


def test_a_requirement_decides_the_exit_code(cli, cls_run):
    result = cli("evaluate", cls_run, "--require", "accuracy>=0")
    assert result.exit_code == 0 and "As required: accuracy>=0, got " in result.stdout
    result = cli("evaluate", cls_run, "--require", "accuracy>1")
    assert result.exit_code == 1
    assert "expected accuracy>1" in result.stderr
    assert "accuracy" in result.stdout  # the table is shown all the same
    assert cli("evaluate", cls_run, "--require", "accuracy").exit_code == 2


def test_the_training_file_is_not_read_and_predictions_are_written(
    cli, cls_run, tmp_path, monkeypatch
):
    monkeypatch.setattr("lorakit.training.evaluation.load_splits", None)
    run = tmp_path / "run"
    shutil.copytree(cls_run, run)
    for file in run.glob("predictions.jsonl"):
        file.unlink()
    rows = tmp_path / "rows.csv"
    label = RunDirectory(run).recipe().data.label
    known = InferenceSettings.load(run / "adapter").labels
    rows.write_text(f"text,{label}\n" + f"a film,{known[0]}\n" * 40)  # of one class alone
    result = cli("evaluate", run, "--data", rows, "--base")
    assert result.exit_code == 0, result.output
    assert "training examples" not in result.stdout
    assert "guessing the commonest class" in result.stdout
    written = run / "evaluation" / "predictions.jsonl"
    assert str(written) in result.stdout
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    assert len(lines) == 40
    assert list(lines[0]) == ["text", label, "prediction", "probability"]
    assert not (run / "predictions.jsonl").exists()
    other = tmp_path / "new" / "folder" / "other.jsonl"
    assert cli("evaluate", run, "--data", rows, "--output", other).exit_code == 0
    assert other.read_text() == written.read_text()


def test_an_output_that_cannot_be_written_is_refused_before_measuring(cli, done, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "what colour is the sky?", "completion": " blue"}\n')
    for output, problem in (
        (tmp_path, "it is a folder"),
        (rows / "p.jsonl", "is a file"),
        (rows, "it holds the data to measure on"),
    ):
        result = cli("evaluate", done[0].run_dir, "--data", rows, "--output", output)
        assert result.exit_code == 2 and problem in result.stderr
        assert "Measuring" not in result.stdout


def test_a_language_model_has_no_predictions_to_write(cli, done, tmp_path):
    run = done[0].run_dir
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "what colour is the sky?", "completion": " blue"}\n' * 30)
    result = cli("evaluate", run, "--data", rows, "--base")
    assert result.exit_code == 0, result.output
    assert "than the base by" in result.stdout and "forgets" in result.stdout
    assert not (run / "evaluation").exists()
    result = cli("evaluate", run, "--data", rows, "--output", tmp_path / "p.jsonl")
    assert result.exit_code == 2
    assert "got an evaluation that generates nothing" in result.stderr


def test_an_adapter_of_another_tool_has_to_name_its_classes(cli, cls_run, tmp_path):
    adapter = tmp_path / "theirs"
    shutil.copytree(cls_run / "adapter", adapter)
    labels = InferenceSettings.load(adapter).labels
    (adapter / "lorakit.json").unlink()
    given = ("evaluate", adapter, "--recipe", cls_run / "recipe.yaml")
    result = cli(*given)
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    assert "does not say which output of its head is which class" in result.stderr
    assert 'Write {"labels": ["...", "..."]} into lorakit.json' in result.stderr
    (adapter / "lorakit.json").write_text(json.dumps({"labels": labels}))
    named, ours = cli(*given), cli("evaluate", cls_run)
    assert named.exit_code == 0, named.stderr
    tables = [
        [line.split() for line in one.stdout.split("\n") if "accuracy" in line]
        for one in (named, ours)
    ]
    assert tables[0] == tables[1] != []

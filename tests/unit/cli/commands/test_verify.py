"""`lorakit verify`: what passes, and what ends with exit code 1."""

import json
import shutil


def test_a_run_passes(cli, cls_run):
    result = cli("verify", cls_run)
    assert result.exit_code == 0, result.stderr
    words = " ".join(result.stdout.split())
    for name in ("files", "base", "fit", "effect", "predictions"):
        assert f"{name} passed" in words
    assert "Nothing is wrong." in words and f'lorakit generate {cls_run} "..."' in words


def test_what_differs_from_the_training_ends_the_command(cli, cls_run, tmp_path):
    copy = shutil.copytree(cls_run, tmp_path / "copy")
    (copy / "recipe.yaml").unlink()
    assert cli("verify", copy).exit_code == 0, "the recipe is needed for the predictions alone"
    shutil.copy(cls_run / "recipe.yaml", copy)
    path = copy / "predictions.jsonl"
    rows = [json.loads(line) | {"probability": 0.0} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = cli("verify", copy)
    assert result.exit_code == 1
    assert "of predictions.jsonl differs by" in " ".join(result.stdout.split())
    assert "got 1 failed check (predictions), expected none" in result.stderr


def test_a_base_at_another_place_is_asked_for(cli, cls_run, tmp_path):
    adapter = shutil.copytree(cls_run / "adapter", tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text())
    base, config["base_model_name_or_path"] = config["base_model_name_or_path"], "/nowhere/base"
    path.write_text(json.dumps(config))
    words = " ".join(cli("verify", adapter).stdout.split())
    assert "2 not checked." in words and f"lorakit verify {adapter} --base-model BASE" in words
    words = " ".join(cli("verify", adapter, "--base-model", base).stdout.split())
    assert "Nothing is wrong." in words
    assert f'lorakit generate {adapter} "..." --base-model {base}' in words


def test_there_has_to_be_an_adapter(cli, tmp_path):
    result = cli("verify", tmp_path)
    assert result.exit_code == 2 and "No adapter in" in result.stderr

"""`lorakit evaluate`."""

import shutil


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


def test_missing_data_are_named(cli, cls_run):
    result = cli("evaluate", cls_run, "--data", "no-such.csv")
    assert result.exit_code == 2
    assert "no-such.csv" in result.stderr


def test_a_quantised_run_is_measured_on_its_quantised_base_or_another(cli, quantized_run):
    result = cli("evaluate", quantized_run, "--base")
    assert result.exit_code == 0, result.stderr
    adapted = result.stdout
    result = cli("evaluate", quantized_run, "quantization=null")
    assert result.exit_code == 0, result.stderr
    assert "accuracy" in adapted and "accuracy" in result.stdout


def test_a_requirement_decides_the_exit_code(cli, cls_run):
    assert cli("evaluate", cls_run, "--require", "accuracy>=0").exit_code == 0
    result = cli("evaluate", cls_run, "--require", "accuracy>1")
    assert result.exit_code == 1
    assert "expected accuracy>1" in result.stderr
    assert "accuracy" in result.stdout  # the table is shown all the same
    assert cli("evaluate", cls_run, "--require", "accuracy").exit_code == 2

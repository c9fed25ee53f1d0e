"""`lorakit study`: what it refuses; tests/unit/tuning/test_study.py runs one on Ray."""

import json


def test_a_set_without_modules_is_reported(cli, cls_recipe, tmp_path):
    section = json.dumps({"ranks": [2], "target_modules": [["q_linn"]]})
    result = cli("study", cls_recipe, f"study={section}")
    assert result.exit_code == 2
    assert "Did you mean 'q_lin'" in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_key_is_reported(cli, cls_recipe):
    result = cli("study", cls_recipe, "study.rank=[2]")
    assert result.exit_code == 2
    assert "Did you mean 'ranks'" in result.stderr

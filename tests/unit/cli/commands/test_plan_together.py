"""`lorakit plan A B --together`: the memory of runs in one process, and what it refuses."""

import json

import pytest
import yaml

from fixtures.printed import flat


@pytest.fixture
def two_recipes(cls_recipe, tmp_path):
    values = yaml.safe_load(cls_recipe.read_text())
    second = tmp_path / "second.yaml"
    changed = {"lora": {**values.get("lora", {}), "r": 16}, "output": str(tmp_path / "second")}
    second.write_text(yaml.safe_dump(values | changed))
    return cls_recipe, second


def test_runs_of_one_process_need_less_than_a_process_each(cli, two_recipes):
    result = cli("plan", *two_recipes, "--together", "--memory", "64GB")
    assert result.exit_code == 0, result.stderr
    words = " ".join(result.stdout.split())
    assert "2 runs on" in words and "a process for each" in words and "They fit: " in words
    assert f"lorakit train {two_recipes[0]} {two_recipes[1]} --together" in result.stdout


def test_what_does_not_fit_ends_with_1(cli, two_recipes):
    result = cli("plan", *two_recipes, "--together", "--memory", "1MB", "--json")
    assert result.exit_code == 1
    planned = json.loads(result.stdout)
    alone = [each["needed_bytes"] for each in planned["runs"].values()]
    assert len(alone) == 2 and max(alone) < planned["needed_bytes"] < sum(alone)
    assert planned["memory_bytes"] == 10**6 and planned["fits"] is False
    result = cli("plan", *two_recipes, "--together", "--memory", "1MB")
    assert result.exit_code == 1 and "They do not fit: they need" in result.stdout


def test_bad_calls_are_refused(cli, two_recipes):
    first, second = two_recipes
    result = cli("plan", first, second)
    assert result.exit_code == 2
    assert "Add --together to plan several runs on one base" in flat(result.stderr)
    result = cli("plan", first, second, "--together", "--measure")
    assert result.exit_code == 2 and "got --measure too" in flat(result.stderr)
    result = cli("plan", first, first, "--together")
    assert result.exit_code == 2
    assert "twice, expected a directory for each run" in flat(result.stderr)

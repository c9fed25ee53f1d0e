"""Losses of two commits: the cases, a run of them, and the table."""

import json

import pytest
from tools import compare_losses
from tools.compare_losses import CASES, TASKS, compare, largest_difference, recipe_of, train_recipes

from lorakit.config import TaskType
from lorakit.recipes.recipe import Recipe


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The bases and the data of all cases."""
    folder = tmp_path_factory.mktemp("inputs")
    compare_losses.write_inputs(folder)
    return folder


@pytest.fixture
def table(inputs, monkeypatch, capsys):
    """Compare losses that are given instead of computed, and return the cells of the rows."""

    def rows(before, after, floor):
        given = {"before": before, "after": after, "nudged": floor}
        monkeypatch.setattr(compare_losses, "write_inputs", lambda folder: None)
        monkeypatch.setattr(
            compare_losses, "losses_of", lambda checkout, recipes, folder: given[folder.name]
        )
        compare(inputs, ["DoRA"], 2, inputs)
        return capsys.readouterr().out.splitlines()[1].split()

    return rows


def test_every_task_is_compared():
    assert set(TASKS) == set(TaskType)


@pytest.mark.parametrize("name", CASES)
def test_each_case_is_a_recipe_in_float32_with_examples_at_random(name, inputs):
    recipe = Recipe.check({**recipe_of(CASES[name], inputs), "output": "run"}, name)
    assert recipe.dtype == "float32"
    assert recipe.training["train_sampling_strategy"] == "random"


def test_each_step_of_a_run_has_a_loss_and_what_is_refused_has_none(inputs, tmp_path, capsys):
    recipe = recipe_of(CASES["SEQ_CLS"], inputs, steps=3)
    (tmp_path / "known.json").write_text(json.dumps(recipe))
    (tmp_path / "unknown.json").write_text(json.dumps(recipe | {"from_the_future": 1}))
    train_recipes(tmp_path)
    assert [path.name for path in tmp_path.glob("*.losses")] == ["known.losses"]
    assert len(set(json.loads((tmp_path / "known.losses").read_text()))) == 3
    assert "from_the_future" in capsys.readouterr().err


def test_a_nudged_recipe_learns_a_trifle_faster(inputs):
    recipe = recipe_of(CASES["rsLoRA"], inputs)
    rate, nudged = (
        one["training"]["learning_rate"] for one in (recipe, compare_losses.nudged(recipe))
    )
    assert 0 < nudged / rate - 1 < 1e-6


def test_the_largest_difference_is_relative_to_the_loss_before():
    assert largest_difference([2.0, 4.0], [2.0, 5.0]) == 0.25
    assert largest_difference([4.0, 4.0], [3.0, 4.0]) == 0.25
    with pytest.raises(ValueError, match="shorter"):
        largest_difference([2.0, 4.0], [2.0])


def test_a_row_has_the_losses_and_both_differences(table):
    before, after, floor = [2.0, 1.0], [2.0, 1.5], [2.5, 1.0]
    row = table({"DoRA": before}, {"DoRA": after}, {"DoRA": floor})
    assert row == ["DoRA", "2.000", "1.000", "5.0e-01", "2.5e-01"]


def test_a_case_that_a_commit_does_not_know_is_refused(table):
    assert table({}, {"DoRA": [2.0]}, {}) == ["DoRA", "refused"]


@pytest.mark.parametrize(
    "words, problem",
    [
        (["nowhere"], "nowhere is not a checkout of lorakit"),
        ([str(compare_losses.ROOT), "--steps", "0"], "--steps: got 0, expected at least 1"),
    ],
)
def test_bad_input_ends_before_anything_is_trained(words, problem, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compare_losses", *words])
    with pytest.raises(SystemExit, match="2"):
        compare_losses.main()
    assert problem in capsys.readouterr().err

"""Whether a recipe fits, and what would make it fit."""

import pytest

from lorakit.planning import plan
from lorakit.recipes.recipe import Recipe
from lorakit.runs.memory_answer import memory_of


@pytest.fixture
def recipe(tiny_distilbert_dir, tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "a text of some words,x\nanother text,y\n" * 50)
    return Recipe.check(
        {
            **{"model": tiny_distilbert_dir, "task": "SEQ_CLS", "output": str(tmp_path / "run")},
            **{"data": {"train": str(path)}, "training": {"use_cpu": True}},
        },
        "the test",
    )


def test_a_run_that_fits_has_the_numbers_of_the_plan_and_no_remedies(recipe):
    answer, planned = memory_of(recipe), plan(recipe)
    assert answer.fits and answer.verdict.startswith("It fits: ") and answer.remedies == ()
    assert {k: v for k, v in answer.by_purpose.items() if not k.startswith("Python")} == (
        planned.by_purpose
    )
    assert sum(answer.by_purpose.values()) == answer.needed_bytes
    assert (answer.updates, answer.trainable) == (planned.updates, planned.trainable)


@pytest.mark.usefixtures("few_changes")
def test_a_run_that_does_not_fit_has_remedies_that_can_be_applied(recipe):
    answer = memory_of(recipe, memory="1MB")
    assert answer.fits is False and answer.remedies[-1].name == "all of these"
    peak_bytes = plan(recipe).peak_bytes
    assert all(remedy.saves_bytes > 0 for remedy in answer.remedies)
    for remedy in (answer.remedies[0], answer.remedies[-1]):  # the last has the values of all
        changed = recipe.with_changes(remedy.values, "the test")
        assert plan(changed).peak_bytes < peak_bytes

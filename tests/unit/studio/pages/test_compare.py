"""Compare: curves on each other, what differs, field against metric."""

from urllib.parse import urlencode

import pytest
from nicegui import ui

from fixtures.run_folders import RECIPE, write_run
from lorakit.runs.paths import join_paths
from lorakit.studio.pages.compare import _MOST_RUNS

pytestmark = pytest.mark.anyio


async def test_two_runs(user, studio):
    write_run(studio.root / "a")
    write_run(studio.root / "b", recipe=RECIPE.replace("r: 4", "r: 64").replace("<script>", "<i>"))
    await user.open("/compare?runs=a,b")
    for text in ("lora.r", "64", "data.label", "<i>alert(1)</script>", "eval_accuracy"):
        await user.should_see(text)
    await user.should_not_see("training.num_train_epochs")
    assert len(user.find(ui.echart).elements) == 2


async def test_the_same_recipe_has_no_difference(user, studio):
    write_run(studio.root / "a")
    write_run(studio.root / "b")
    await user.open("/compare?runs=a,b")
    await user.should_see("The recipes are the same, except for the output.")


async def test_without_runs_there_is_a_choice(user, studio):
    await user.open("/compare")
    await user.should_see("There is no run to compare yet.")
    write_run(studio.root / "a")
    await user.open("/compare")
    await user.should_see("Choose two or more runs.")


async def test_a_run_that_is_gone_is_named_and_the_others_are_shown(user, studio):
    write_run(studio.root / "a")
    await user.open("/compare?runs=a,gone,../x")
    await user.should_see("'gone'")
    await user.should_see("'../x'")
    await user.should_see("eval_accuracy")


async def test_a_damaged_run_is_named(user, studio):
    write_run(studio.root / "a", recipe="model: [")
    await user.open("/compare?runs=a")
    await user.should_see(str(studio.root / "a" / "recipe.yaml"))


async def test_a_comma_is_part_of_a_path(user, studio):
    write_run(studio.root / "r 4, small")
    write_run(studio.root / "b", recipe=RECIPE.replace("r: 4", "r: 64"))
    await user.open("/compare?" + urlencode({"runs": join_paths(["r 4, small", "b"])}))
    await user.should_see("r 4, small")
    await user.should_see("A field against a metric")


async def test_too_many_runs_are_refused(user, studio):
    await user.open("/compare?runs=" + ",".join(map(str, range(_MOST_RUNS + 1))))
    await user.should_see(f"Cannot compare {_MOST_RUNS + 1} runs")


async def test_runs_are_chosen_on_the_page(user, studio):
    write_run(studio.root / "a")
    write_run(studio.root / "b", recipe=RECIPE.replace("r: 4", "r: 64"))
    await user.open("/compare?runs=a")
    (choice,) = user.find(ui.select).elements & user.find("Runs to compare").elements
    choice.value = ["a", "b"]
    user.find(kind=ui.button, content="Compare").click()
    await user.should_see("lora.r", retries=20)
    await user.should_see("A field against a metric", retries=20)

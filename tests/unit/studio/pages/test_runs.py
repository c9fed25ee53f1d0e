"""Runs: what the list shows of each run, and what it does with them."""

import pytest

pytestmark = pytest.mark.anyio


async def test_an_empty_folder_says_so(user):
    await user.open("/")
    await user.should_see("There is no run in this folder yet.")


async def test_runs_are_listed_by_their_path(user, studio):
    for name in ("a", "b/c"):
        (studio.root / name).mkdir(parents=True)
        (studio.root / name / "recipe.yaml").touch()
    await user.open("/")
    await user.should_see("a")
    await user.should_see("b/c")

"""Search: the trials while they run, and the way from the best one to a new run."""

import asyncio

import pytest
from nicegui import ui

from fixtures.written_searches import write_search

pytestmark = pytest.mark.anyio


def targets(user):
    return [link.props["href"] for link in user.find(ui.link).elements]


async def test_a_search_is_shown_while_it_runs(user, studio):
    write_search(studio.root / "s", ("running", 4, [0.5]), ("waiting", 8, []))
    await user.open("/search/s")
    await user.should_see("0 of 2 trials so far have ended.")
    await user.should_see("trial-002")
    write_search(studio.root / "s", ("finished", 4, [0.5, 0.6]), ("finished", 8, [0.9]))
    await asyncio.sleep(2.2)
    await user.should_see("2 of 2 trials so far have ended.")
    assert "/new?from=s" in targets(user)
    (studio.root / "s" / "best.yaml").touch()
    await user.should_not_see("Best so far", retries=40)
    assert "/new?from=s" in targets(user)


async def test_a_trial_keeps_its_row_and_its_link_wherever_it_moves(user, studio):
    def link(name):
        (found,) = (one for one in user.find(ui.link).elements if one.text == name)
        return found, found.parent_slot.parent.parent_slot  # the row

    write_search(studio.root / "s", ("finished", 4, [0.5]), ("running", 8, [0.4]))
    for name in ("trial-001", "trial-002"):
        (studio.root / "s" / "trials" / name / "recipe.yaml").touch()
    await user.open("/search/s")
    await user.should_see("Best so far")
    before, row = link("trial-002")
    write_search(studio.root / "s", ("finished", 4, [0.5]), ("running", 8, [0.4, 0.9]))
    await user.should_see("trial-002: validation", retries=40)
    after, moved = link("trial-002")
    assert after is before and moved is row
    rows = [slot.parent for slot in (link("trial-002")[1], link("trial-001")[1])]
    body = rows[0].parent_slot.children
    assert body == rows


async def test_trials_of_a_search_with_characters_of_addresses_have_links(user, studio):
    write_search(studio.root / "s #1?", ("finished", 4, [0.5]))
    (studio.root / "s #1?" / "trials" / "trial-001" / "recipe.yaml").touch()
    await user.open("/search/s%20%231%3F")
    await user.should_see("1 of 1 trial")
    assert targets(user).count("/run/s%20%231%3F/trials/trial-001") == 2


async def test_pictures_of_the_parameters(user, studio):
    write_search(studio.root / "s", ("finished", 4, [0.5]), ("finished", 64, [0.9]))
    await user.open("/search/s")
    assert len(user.find(ui.echart).elements) == 3  # curves, coordinates, one parameter


async def test_an_error_of_a_trial_is_text(user, studio):
    write_search(studio.root / "s", ("failed", 4, []), ("running", 8, []))
    await user.open("/search/s")
    await user.should_see('<script>no</script>, "so"')
    await user.should_see("failed")


async def test_a_damaged_table_is_named(user, studio):
    search = write_search(studio.root / "s", ("running", 4, []))
    (search / "trials.csv").write_text("a,b\n1,2\n")
    await user.open("/search/s")
    await user.should_see(str(search / "trials.csv"))


async def test_a_folder_without_a_search_says_so(user, studio):
    (studio.root / "x").mkdir()
    await user.open("/search/x")
    await user.should_see("neither search.yaml nor study.yaml")

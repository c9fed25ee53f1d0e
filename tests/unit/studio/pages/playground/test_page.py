"""The playground's page: its addresses, and what a reload shows."""

import pytest

from fixtures.studio_pages import ended, load
from lorakit.serving.clients.playground import Loading

pytestmark = pytest.mark.anyio


async def test_a_folder_without_adapters_says_where_to_go(user, state):
    await user.open("/playground")
    await user.should_see("There is no adapter in this folder yet.")
    await user.should_see("New run")


async def test_a_reload_shows_the_last_answers(user, root, state):
    await load(user, state, "/playground?runs=german")
    user.find("Text").type("hello")
    user.find("Ask").click()
    await ended(lambda: state.answers and not state.is_answering)
    await user.open("/playground")
    await user.should_see("with german.")
    await user.should_see("Correct")
    await user.should_see("hello")


async def test_a_path_outside_the_folder_is_refused(user, root, state):
    await user.open("/playground?runs=../secret")
    await user.should_see("it leads out of that folder")
    await user.open("/playground?mixture=../x")
    await user.should_see("No mixture")


async def test_the_page_does_not_rest_while_it_loads_or_answers(user, state, monkeypatch):
    given = {}
    every = "lorakit.studio.pages.playground.page.every"
    monkeypatch.setattr(every, lambda *_, **options: given.update(options))
    await user.open("/playground")
    assert not given["is_awaited"]()
    state.loading = Loading()
    assert given["is_awaited"]()
    state.loading = None
    monkeypatch.setattr(type(state), "is_answering", True)
    assert given["is_awaited"]()

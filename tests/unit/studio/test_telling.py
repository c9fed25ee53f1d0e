"""Handlers that show a LorakitError instead of logging it."""

import pytest
from nicegui import ui

from lorakit.errors import ConfigError
from lorakit.studio import telling as module
from lorakit.studio.telling import telling


@pytest.fixture
def shown(monkeypatch):
    sentences = []
    monkeypatch.setattr(module, "notify_problem", sentences.append)
    return sentences


def fail(error):
    raise error


async def fail_later(error):
    raise error


def test_a_functions_error_is_shown(shown):
    telling(fail)(ConfigError("Say this."))
    assert shown == ["Say this."]
    assert telling(int)("3") == 3


@pytest.mark.anyio
async def test_a_coroutines_error_is_shown(shown):
    await telling(fail_later)(ConfigError("Say this."))
    assert shown == ["Say this."]


def test_other_errors_pass(shown):
    with pytest.raises(ValueError, match="else"):
        telling(fail)(ValueError("else"))
    assert shown == []


@pytest.mark.anyio
async def test_the_error_of_a_handler_that_removes_its_button_is_shown(user):
    @telling
    async def draw_again():
        place.clear()
        raise ConfigError("Say this.")

    @ui.page("/telling")
    def page():
        nonlocal place
        place = ui.element("div")
        with place:
            ui.button("Do", on_click=draw_again)

    place = None
    await user.open("/telling")
    user.find("Do").click()
    await user.should_see("Say this.", retries=50)

"""The frame around every page, and what it does with errors."""

import pytest

from lorakit.errors import DataError

pytestmark = pytest.mark.anyio


@pytest.fixture
async def open_page(user):
    from lorakit.studio.frame import page, register

    async def opened(build, path="/test", at=None):
        register([page(path, "Test")(build)])
        await user.open(at or path)
        return user

    return opened


async def test_a_page_has_a_heading_and_takes_parameters(open_page):
    from lorakit.studio.blocks import Text
    from lorakit.studio.frame import set_title

    def build(path: str, n: int = 0):
        set_title(path)
        Text("p", f"{n + 1}")

    user = await open_page(build, "/of/{path:path}", "/of/a/b?n=2")
    await user.should_see("a/b")
    await user.should_see("3")


async def test_an_error_is_its_sentence_in_the_frame(open_page):
    def build():
        raise DataError("Cannot read a.csv: it is empty.")

    user = await open_page(build)
    await user.should_see("Cannot read a.csv: it is empty.")
    await user.should_see("lorakit studio")


async def test_an_error_after_waiting_is_shown_too(open_page):
    async def build():
        raise DataError("Cannot read b.csv: it is empty.")

    user = await open_page(build)
    await user.should_see("Cannot read b.csv: it is empty.")


async def test_an_unexpected_error_is_a_message_and_never_blank(open_page, caplog):
    def build():
        raise KeyError("x")

    user = await open_page(build)
    await user.should_see("Something unexpected went wrong: KeyError: 'x'")
    assert "A page of the studio failed." in caplog.text
    caplog.clear()


async def test_foreign_text_is_text(open_page):
    from lorakit.studio.blocks import Text

    def build():
        Text("p", "<script>alert(1)</script>\x1b[31m😀")

    user = await open_page(build)
    await user.should_see("<script>alert(1)</script>\\x1b[31m😀")

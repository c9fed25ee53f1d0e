"""Small changes of a page go to the browser in one message."""

import asyncio

from lorakit.studio.browser_calls import call


class Page:
    """A page as `call` uses it; records what is run in it."""

    def __init__(self, is_deleted=False):
        self.is_deleted = is_deleted
        self.run = []

    def run_javascript(self, code):
        self.run.append(code)


def changed(*pages):
    async def change():
        for page in pages:
            call(page, "a()")
            call(page, "b()")
        assert not any(page.run for page in pages), "not before the loop goes on"
        await asyncio.sleep(0)
        call(pages[0], "c()")
        await asyncio.sleep(0)

    asyncio.run(change())


def test_the_statements_of_one_moment_are_one_message():
    page, other = Page(), Page()
    changed(page, other)
    assert page.run == ["a();\nb()", "c()"]
    assert other.run == ["a();\nb()"]


def test_a_page_that_is_gone_is_told_nothing():
    page = Page(is_deleted=True)
    changed(page)
    assert page.run == []

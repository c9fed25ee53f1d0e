"""The application: every page has an address, and all are behind the door."""

from lorakit.studio.frame import NAVIGATION
from lorakit.studio.pages import PAGES


def test_pages_have_different_addresses_and_titles():
    assert len({page.path for page in PAGES}) == len(PAGES)
    assert all(page.title and page.build.__doc__ for page in PAGES)


def test_the_navigation_begins_with_the_runs():
    assert NAVIGATION[0] == ("Runs", "/")

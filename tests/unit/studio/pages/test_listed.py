"""All pages are on the web, and the header links to some."""

from lorakit.studio.frame import NAVIGATION
from lorakit.studio.pages.listed import PAGES


def test_pages_have_different_addresses_and_titles():
    assert len({page.path for page in PAGES}) == len(PAGES)
    assert all(page.title and page.build.__doc__ for page in PAGES)


def test_the_navigation_begins_with_the_runs_and_links_to_pages():
    assert NAVIGATION[0] == ("Runs", "/")
    assert {path for _, path in NAVIGATION} <= {page.path for page in PAGES}

"""The pages; each is one file, or a package if it has parts."""

from lorakit.studio.frame import Page
from lorakit.studio.pages import adapters, compare, playground, run, runs, search
from lorakit.studio.pages.new_run import walk

PAGES: tuple[Page, ...] = (
    *(runs.runs, walk.new_run, run.run, compare.compare, search.search),
    *(playground.playground, adapters.adapters),
)
"""All pages. A page is on the web when it is listed here."""

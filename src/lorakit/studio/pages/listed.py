"""All pages of the studio."""

from lorakit.studio.frame import Page
from lorakit.studio.pages import compare, search
from lorakit.studio.pages.adapters.page import adapters
from lorakit.studio.pages.new_run.walk import new_run
from lorakit.studio.pages.playground.page import playground
from lorakit.studio.pages.run.page import run
from lorakit.studio.pages.runs.page import runs

PAGES: tuple[Page, ...] = (
    *(runs, new_run, run, compare.compare, search.search),
    *(playground, adapters),
)
"""A page is on the web when it is listed here."""

"""The pages; each is one file, or a package if it has parts."""

from lorakit.studio.frame import Page
from lorakit.studio.pages import playground, runs

PAGES: tuple[Page, ...] = (runs.runs, playground.playground)
"""All pages. A page is on the web when it is listed here."""

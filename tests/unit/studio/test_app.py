"""The application around its pages: what it imports, its addresses, and the queue goes on."""

import subprocess
import sys

from fixtures.run_folders import made_run
from lorakit.studio import app
from lorakit.studio.app import PAGES
from lorakit.studio.frame import NAVIGATION


def test_pages_have_different_addresses_and_titles():
    assert len({page.path for page in PAGES}) == len(PAGES)
    assert all(page.title and page.build.__doc__ for page in PAGES)


def test_the_navigation_begins_with_the_runs_and_links_to_pages():
    assert NAVIGATION[0] == ("Runs", "/")
    assert {path for _, path in NAVIGATION} <= {page.path for page in PAGES}


def test_what_waits_is_started_where_nobody_else_has(studio, monkeypatch):
    started = []
    monkeypatch.setattr(type(studio.queue), "start_waiting", lambda self: started.append(self.root))
    made_run(studio.root, "first")
    app._start_waiting(studio)
    assert started == []
    studio.queue.jobs.create(["train"], "second", studio.root, {})
    app._start_waiting(studio)
    assert started == [studio.root]


def test_the_page_is_there_without_the_libraries_of_training():
    heavy = ["torch", "transformers", "datasets", "pandas", "numpy", "sklearn", "matplotlib"]
    code = f"import sys, lorakit.studio.app; print([m for m in {heavy} if m in sys.modules])"
    words = [sys.executable, "-c", code]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == "[]\n"

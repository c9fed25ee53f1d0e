"""The one application of the studio: NiceGUI's pages in FastAPI, behind the door."""

from __future__ import annotations

import asyncio
import logging

from fastapi import FastAPI
from nicegui import app as pages_app
from nicegui import background_tasks, run, ui
from starlette.types import ASGIApp

from lorakit.errors import LorakitError
from lorakit.studio.access import Access
from lorakit.studio.context import Studio, open_studio
from lorakit.studio.frame import Page, draw_missing_page, register
from lorakit.studio.gate import Gate
from lorakit.studio.pages.adapters.page import adapters
from lorakit.studio.pages.compare import compare
from lorakit.studio.pages.new_run.walk import new_run
from lorakit.studio.pages.playground.page import playground
from lorakit.studio.pages.run.page import run as run_page
from lorakit.studio.pages.runs.page import runs
from lorakit.studio.pages.search import search

PAGES: tuple[Page, ...] = (runs, new_run, run_page, compare, search, playground, adapters)
"""A page is on the web when it is listed here."""

_RECONNECT_S = 30.0
"""How long the server keeps what a page shows after its connection is lost, as by a short sleep."""

_QUEUE_PERIOD_S = 3.0
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" '
    'rx="7" fill="#3346b8"/><path d="M7 24h18M9 20c5-1 5-12 14-13" stroke="#fff" '
    'stroke-width="3" fill="none" stroke-linecap="round"/></svg>'
)
_log = logging.getLogger(__name__)


def build_app(studio: Studio, access: Access) -> ASGIApp:
    """Return the application; one process has one, because NiceGUI's pages are global.

    Args:
        studio: What the pages show.
        access: Decides who is admitted.
    """
    open_studio(studio)
    register(PAGES)
    app = FastAPI(title="lorakit studio", docs_url=None, redoc_url=None, openapi_url=None)
    pages_app.on_startup(lambda: background_tasks.create(_tend_queue(studio), name="queue"))
    ui.run_with(
        app,
        root=draw_missing_page,
        favicon=_ICON,
        title="lorakit studio",
        language="en-US",
        dark=None,
        reconnect_timeout=_RECONNECT_S,
        binding_refresh_interval=None,
        tailwind=False,
        show_welcome_message=False,
    )
    return Gate(app, access)


async def _tend_queue(studio: Studio) -> None:
    """Start what waits, where nobody else has: after a restart of the machine, or a kill."""
    while True:
        await asyncio.sleep(_QUEUE_PERIOD_S)
        try:
            await run.io_bound(_start_waiting, studio)
        except LorakitError as error:
            _log.warning("The queue cannot go on: %s", error)


def _start_waiting(studio: Studio) -> None:
    if any(job.state == "queued" for job in studio.queue.jobs.all()):
        studio.queue.start_waiting()

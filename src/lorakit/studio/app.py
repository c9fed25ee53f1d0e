"""The one application of the studio: NiceGUI's pages in FastAPI, behind the door."""

from __future__ import annotations

from fastapi import FastAPI
from nicegui import ui
from starlette.types import ASGIApp

from lorakit.studio.access import Access
from lorakit.studio.context import Studio, open_studio
from lorakit.studio.frame import register
from lorakit.studio.gate import Gate
from lorakit.studio.pages import PAGES

_RECONNECT_S = 30.0
"""How long the server keeps what a page shows after its connection is lost, as by a short sleep."""


def build_app(studio: Studio, access: Access) -> ASGIApp:
    """Return the application; one process has one, because NiceGUI's pages are global.

    Args:
        studio: What the pages show.
        access: Decides who is admitted.
    """
    open_studio(studio)
    register(PAGES)
    app = FastAPI(title="lorakit studio", docs_url=None, redoc_url=None, openapi_url=None)
    ui.run_with(
        app,
        title="lorakit studio",
        language="en-US",
        dark=None,
        reconnect_timeout=_RECONNECT_S,
        binding_refresh_interval=None,
        tailwind=False,
        show_welcome_message=False,
    )
    return Gate(app, access)

"""A drop zone whose files are written to the folder while they arrive."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from fastapi import Request
from fastapi.responses import JSONResponse
from nicegui import app, ui

from lorakit.errors import LorakitError
from lorakit.runs.data_files import receiving

_NAME_HEADER = "X-File-Name"
_TOO_LARGE = 413


class StreamedUpload(ui.upload):
    """Takes one file at a time; NiceGUI's own would keep it in a temporary file first."""

    def __init__(
        self,
        root: Path,
        label: str,
        on_received: Callable[[str], Any],
        on_refused: Callable[[Exception], Any],
    ):
        """Show a drop zone.

        Args:
            root: Folder of the studio.
            label: What to do, for the reader.
            on_received: Called with the value of `data.train` when a file is whole.
            on_refused: Called with the error of a file that cannot be taken.
        """
        super().__init__(label=label, auto_upload=True)
        self._root, self._on_received, self._on_refused = root, on_received, on_refused
        url = f"/_studio/receive/{self.client.id}/{self.id}"
        app.post(url, include_in_schema=False)(self._receive)
        self.client.on_delete(lambda: app.remove_route(url))
        self._props["url"] = url
        self._props["send-raw"] = True
        self.props(
            f""":headers="files => [{{name: '{_NAME_HEADER}', """
            '''value: encodeURIComponent(files[0].name)}]"'''
        )

        named = json.dumps(label)
        ui.run_javascript(
            f"getHtmlElement({self.id}).querySelectorAll('input[type=file], a[tabindex]')"
            f".forEach(element => element.setAttribute('aria-label', {named}))"
        )

    async def _receive(self, request: Request) -> JSONResponse:
        name = unquote(request.headers.get(_NAME_HEADER, ""), errors="replace")
        length = request.headers.get("content-length", "")
        try:
            with receiving(self._root, name, int(length) if length.isdigit() else None) as received:
                path, file = received
                async for chunk in request.stream():
                    await asyncio.to_thread(file.write, chunk)
        except (LorakitError, OSError) as error:
            with self.parent_slot or self:
                self._on_refused(error)
            return JSONResponse({"problem": str(error)}, _TOO_LARGE)
        with self.parent_slot or self:
            self._on_received(path.relative_to(self._root).as_posix())
        return JSONResponse({"received": path.name})

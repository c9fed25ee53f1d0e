"""The models that the playground has in memory, for its pages and for other programs."""

from __future__ import annotations

from pathlib import Path

from nicegui import app
from starlette.types import Receive, Scope, Send

from lorakit.serving.clients.playground import Playground
from lorakit.serving.http.errors import error_response
from lorakit.serving.refusals import RequestError
from lorakit.studio.context import Studio

_opened: dict[Path, Playground] = {}


def playground_of(studio: Studio) -> Playground:
    """Return the playground of this process for a studio; there is one, whoever looks."""
    found = _opened.get(studio.root)
    if found is None:
        found = _opened[studio.root] = Playground(studio.root)
        app.on_shutdown(found.close)
    return found


class ServedModels:
    """ASGI application: OpenAI's protocol, answered by what the playground has in memory."""

    def __init__(self, studio: Studio):
        """Serve the models of a studio; callers are admitted by somebody else."""
        self._studio = studio

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a call, or say that nothing is in memory."""
        answer = playground_of(self._studio).address or error_response(
            RequestError(
                "No model answers: got nothing in the memory of the studio, expected a base or an "
                "adapter. Load one in its playground.",
                status=503,
                code="no_model",
                retry_after_s=5,
            )
        )
        await answer(scope, receive, send)

"""One process of the cluster that has the models."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from ray import serve

from lorakit.errors import EngineStoppedError, LorakitError
from lorakit.serving.http.app import build_app
from lorakit.serving.http.context import ContextSettings
from lorakit.serving.http.errors import as_request_error, error_response
from lorakit.serving.http.relay import CarriedRequest, Message, answer
from lorakit.serving.ray_deployment.entrance import Changes
from lorakit.serving.service import Overview

_log = logging.getLogger(__name__)


class Replica:
    """The models in one process of the cluster, with the application that answers for them."""

    def __init__(self, settings: ContextSettings, directory: Path):
        """Load the base and the adapters that were named.

        Args:
            settings: What is served, and how.
            directory: Where relative paths begin.
        """
        os.chdir(directory)
        self._context = settings.build()
        try:
            self._context.service.start()
            self._context.service.require_named()
        except LorakitError:
            self._context.close()
            raise
        self._app = build_app(self._context)
        self._changes = Changes()
        self._refused: dict[str, LorakitError] = {}
        self._changing = asyncio.Lock()

    async def answer(
        self, request: CarriedRequest, changes: Changes, then: Changes | None = None
    ) -> AsyncGenerator[list[Message]]:
        """Yield the application's answer.

        Args:
            request: The request.
            changes: Changes of adapters that come before it.
            then: The changes if the request, which makes one, is answered with 200.
        """
        if changes.version > self._changes.version:
            async with self._changing:
                await self._follow(changes)
        refused = self._refused.get(request.text("model")) if self._refused else None
        app = self._app if refused is None else error_response(as_request_error(refused))
        async for messages in answer(app, request):
            if then is not None and messages[0].get("status") == 200:
                self._changes = then
            yield messages

    async def _follow(self, changes: Changes) -> None:
        """Load and unload what administrators had other replicas load and unload."""
        service, followed = self._context.service, self._changes.adapters
        for name, path in changes.adapters.items():
            if name in followed and followed[name] == path:
                continue
            try:
                was_served = followed[name] is not None if name in followed else path is None
                if was_served and name not in self._refused:
                    service.unload_adapter(name)
                if path is not None:
                    await service.load_adapter(name, path)
                self._refused.pop(name, None)
            except LorakitError as error:
                _log.error("This replica cannot follow a change of '%s': %s", name, error)
                self._refused[name] = error
        self._changes = changes

    def changes(self) -> Changes:
        """Return the changes that this replica has followed."""
        return self._changes

    def overview(self) -> Overview:
        """Return what is served."""
        return self._context.service.overview()

    def metrics(self) -> tuple[str, bytes]:
        """Return the name of this replica, and its figures for Prometheus."""
        return serve.get_replica_context().replica_id.unique_id, self._context.metrics.text()

    def record_routing_stats(self) -> dict[str, Any]:
        """Tell the entrance which adapters are in memory."""
        return {"adapters": self._context.service.in_memory()}

    def check_health(self) -> None:
        """Have Ray replace this replica if an engine has failed.

        Raises:
            EngineStoppedError: One has.
        """
        for model in self._context.service.models:
            if model.engine is not None and model.engine.failure is not None:
                raise EngineStoppedError(f"The engine has failed: {model.engine.failure}.")

    def __del__(self) -> None:
        """End all threads, when Ray has let running requests finish."""
        if hasattr(self, "_context"):
            self._context.close()

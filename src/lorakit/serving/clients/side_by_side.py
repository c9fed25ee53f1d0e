"""One base in memory, and adapters that answer the same question beside each other."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from starlette.types import ASGIApp

from lorakit.config import TaskType
from lorakit.errors import ConfigError, StoppedError
from lorakit.models.base_digest import base_digest
from lorakit.runs.base_memory import DeviceRoom, base_bytes, device_room, require_room
from lorakit.serving.base_models import BaseSource
from lorakit.serving.classification import text_labels, word_labels
from lorakit.serving.clients.candidates import (
    MOST_ADAPTERS,
    Candidate,
    Piece,
    Question,
    Wanted,
    Words,
)
from lorakit.serving.clients.in_process import answer_from, form_in, form_of_text, stream_output
from lorakit.serving.clients.talking import AnswerOptions, End
from lorakit.serving.engine import EngineSettings
from lorakit.serving.http.app import build_calls
from lorakit.serving.http.context import Context
from lorakit.serving.service import Service, ServiceSettings
from lorakit.serving.sources import ServingSource, find_source
from lorakit.serving.store import AdapterPlaces

_WRITING = (TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM)
_ENGINE = EngineSettings(max_batch_rows=MOST_ADAPTERS + 1, kv_bytes=256 << 20, max_waiting=64)

Note = Callable[[str], None]
"""Is told what is done now."""


class SideBySide:
    """One base in memory at a time, with up to three adapters.

    `open` and `close` may be called in any thread, one at a time; the others in an event loop.

    Attributes:
        service: What runs the models; None while nothing is in memory.
        address: What answers calls of OpenAI's protocol with the models in memory, and checks no
            key.
    """

    def __init__(self, root: Path):
        """Begin with nothing in memory.

        Args:
            root: Directory below which all adapters lie.
        """
        self._root = root
        self.service: Service | None = None
        self.address: ASGIApp | None = None
        self._places: dict[str, Path] = {}
        self._changing = threading.Lock()

    @property
    def base(self) -> str | None:
        """Path or hub id of the base in memory."""
        service = self.service
        return None if service is None else service.source.base.name

    def room(self, device: str | None = None) -> DeviceRoom:
        """Return the memory that is free for another base, which replaces the one in memory.

        Args:
            device: Where it is loaded; None is the accelerator if there is one.
        """
        service = self.service
        room, returned = device_room(device), 0
        if service is not None:
            returned = _bytes_of(service.source.base) or 0
        return replace(room, free_bytes=room.free_bytes + returned)

    # ---- what is in memory ----

    def open(
        self, wanted: Wanted, note: Note, is_cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Have a base and adapters in memory; another base is unloaded first.

        Adapters of the base in memory are exchanged without loading it again.

        Args:
            wanted: What to have.
            note: Is told what is done.
            is_cancelled: Whether to give up; it is looked at between two stages.

        Raises:
            ConfigError: The adapters need different bases, or the base does not fit into memory.
            StoppedError: It was cancelled; nothing is in memory then.
            LorakitError: The base or an adapter cannot be used.
        """
        if len(wanted.adapters) > MOST_ADAPTERS:
            raise ConfigError(
                f"Cannot compare {len(wanted.adapters)} adapters: expected at most "
                f"{MOST_ADAPTERS} beside the base. Leave some out."
            )
        with self._changing:
            note("Reading what the adapters need")
            source = self._source(wanted)
            if self.service is None or not _serves(self.service, source.base):
                self._replace(source, note, is_cancelled)
            note("Loading the adapters")
            asyncio.run(self._exchange(wanted.adapters))

    def close(self) -> None:
        """Unload the base; its memory is free afterwards."""
        with self._changing:
            self._unload()

    def _source(self, wanted: Wanted) -> ServingSource:
        models = () if wanted.base is None or wanted.adapters else (wanted.base,)
        source = find_source(
            models, adapters=wanted.adapters, root=self._root, unquantized=wanted.unquantized
        )
        if source.base_name in wanted.adapters:
            source = replace(source, base_name=f"{source.base_name} (base)")
        # The adapters are loaded one by one, as another kind of base would keep those it knows.
        return replace(source, places=AdapterPlaces(root=self._root))

    def _replace(self, source: ServingSource, note: Note, is_cancelled: Callable[[], bool]) -> None:
        require_room(
            source.base.name,
            _bytes_of(source.base),
            self.room(source.base.device).free_bytes,
        )
        if self.service is not None:
            note(f"Unloading {self.base}")
            self._unload()
        note(f"Loading the weights of {source.base.name}")
        service = Service(source, ServiceSettings(engine=_ENGINE))
        if is_cancelled():
            service.stop(finish_running=False)
            raise StoppedError("Loading was cancelled; nothing is in memory.")
        service.start()
        self.service = service
        # It runs beside the playground; `open` and `close` start and stop the service for both.
        self.address = build_calls(Context(service))

    async def _exchange(self, wanted: Mapping[str, Path]) -> None:
        service = self._require_service()
        # Two mixtures may have one name: the same weights, combined by other methods.
        kept = {name: place for name, place in self._places.items() if wanted.get(name) == place}
        self._places = kept
        for name in {known.name for known, _ in service.adapters()} - set(kept):
            service.unload_adapter(name)
        for name, place in wanted.items():
            if name not in kept:
                await service.load_adapter(name, str(place.absolute()))
                self._places[name] = place
        self._places = dict(wanted)

    def _unload(self) -> None:
        service, self.service, self._places = self.service, None, {}
        self.address = None
        if service is not None:
            service.stop(finish_running=False)
            del service
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    # ---- asking ----

    async def candidates(self) -> list[Candidate]:
        """Return the base, if it can answer alone, and the adapters."""
        service = self._require_service()
        found = [await self._adapter(service, name) for name in self._places]
        tasks = {each.task for each in found} or set(TaskType)
        alike = [model for model in service.models if model.kind.task in tasks]
        base = next((model for model in alike if model.base.answers_alone), None)
        if base is None:
            return found
        name, task = service.base_name, base.kind.task
        if task is TaskType.CAUSAL_LM:
            alone = Candidate(name, True, task, await form_in(service, self._form_like(found)))
        else:
            alone = Candidate(name, True, task, labels=base.base.labels)
        return [alone, *found]

    async def _adapter(self, service: Service, name: str) -> Candidate:
        found = await service.find(name, list(TaskType), "answer")
        async with found.model.using(found.adapter) as (_, text):
            task = found.model.kind.task
            labels = text.labels if task not in _WRITING else ()
            form = form_of_text(text) if task is TaskType.CAUSAL_LM else None
            return Candidate(name, False, task, form, labels, text.settings.text_pair)

    def _form_like(self, adapters: list[Candidate]) -> str:
        """Return the model whose form the base takes: the first adapter that chats."""
        chatting = (each.name for each in adapters if each.task is TaskType.CAUSAL_LM)
        return next(chatting, self._require_service().base_name)

    async def ask(
        self,
        candidate: Candidate,
        question: Question,
        options: AnswerOptions,
        among: list[Candidate],
    ) -> AsyncIterator[Piece]:
        """Yield what a candidate says to a question, piece by piece.

        Args:
            candidate: Who is asked.
            question: The question.
            options: Sampling of written answers.
            among: All candidates; the base takes the question in the form of the first adapter.

        Raises:
            LorakitError: There is no answer.
        """
        service = self._require_service()
        if candidate.task is TaskType.CAUSAL_LM:
            others = [each for each in among if not each.is_base]
            like = self._form_like(others) if candidate.is_base else candidate.name
            stream = answer_from(
                service, candidate.name, question.messages, options, form_like=like
            )
            async for piece in stream:
                yield piece
            return
        if candidate.task is TaskType.SEQ_2_SEQ_LM:
            async for piece in stream_output(service, candidate.name, question.text, options):
                yield piece
            return
        found = await service.find(candidate.name, [candidate.task], "classify")
        async with found.model.using(found.adapter) as (lease, text):
            if candidate.task is TaskType.TOKEN_CLS:
                (words,) = await word_labels(found.model, lease, text, [question.text])
                yield Words(tuple(words))
            else:
                pair = (question.text, question.second)
                given = pair if candidate.takes_pairs else question.text
                (label,) = await text_labels(found.model, lease, text, [given])
                yield label
        yield End("stop")

    def _require_service(self) -> Service:
        if self.service is None:
            raise ConfigError(
                "Nobody to ask: got no base in memory, expected one. Load a base or an adapter."
            )
        return self.service


def _serves(service: Service, wanted: BaseSource) -> bool:
    """Return whether a base in memory is the one that is wanted, with the weights of its files."""
    if any(m.base.digest != base_digest(wanted.name, wanted.revision) for m in service.models):
        return False
    loaded = service.source.base
    if wanted.dtype == "auto":
        loaded = replace(loaded, dtype="auto")
    return replace(loaded, key="", seed=0) == replace(wanted, key="", seed=0)


def _bytes_of(base: BaseSource) -> int | None:
    bits = None if base.quantization is None else base.quantization.bits
    return base_bytes(base.name, base.dtype, bits)

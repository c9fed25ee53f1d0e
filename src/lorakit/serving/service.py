"""The models of a server together: finding the one a request names, adapters at run time."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from lorakit.config import TaskType
from lorakit.errors import AdapterNameError, first_few
from lorakit.ops.native import openmp
from lorakit.serving.base_models import TASKS_WITH_LABELS, ModelKind, load_base
from lorakit.serving.refusals import RequestError, unknown_model
from lorakit.serving.served_model import ServedModel, ServiceSettings
from lorakit.serving.sources import KindNeeds, ServingSource, needs_of
from lorakit.serving.store import KnownAdapter
from lorakit.serving.store.adapter_directory import adapter_directory, read_facts

_WAYS = {
    TaskType.CAUSAL_LM: "POST /v1/chat/completions or /v1/completions",
    TaskType.SEQ_2_SEQ_LM: "POST /v1/completions",
    TaskType.SEQ_CLS: "POST /v1/classify",
    TaskType.TOKEN_CLS: "POST /v1/classify",
}


@dataclass(frozen=True)
class Found:
    """The model that a request names: an adapter on a base, or the base alone (None)."""

    model: ServedModel
    adapter: str | None


@dataclass(frozen=True)
class Overview:
    """What a server serves; it can be sent to other processes.

    Attributes:
        base_name: Name of the base alone.
        base: Path or hub id of the base.
        kinds: What the base is loaded for.
        answers_alone: Whether the base does the first of them without an adapter.
        has_chat_template: Whether the base has one.
        shared_bytes: Memory of the base that these kinds share.
        adapters: Every adapter with its kind, by name.
    """

    base_name: str
    base: str
    kinds: tuple[ModelKind, ...]
    answers_alone: bool
    has_chat_template: bool
    shared_bytes: int
    adapters: tuple[tuple[KnownAdapter, ModelKind], ...]


class Service:
    """All models of a server.

    Attributes:
        source: What is served.
        base_name: Name of the base alone.
    """

    def __init__(self, source: ServingSource, settings: ServiceSettings | None = None):
        """Load the base for every kind of adapter; nothing runs yet.

        Raises:
            MissingFileError, ConfigError, QuantizationError: The base cannot be loaded.
        """
        self.source = source
        self.base_name = source.base_name
        self._settings = settings or ServiceSettings()
        self._models: dict[ModelKind, ServedModel] = {}
        self._loading = threading.Lock()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load-base")
        self._is_running = False
        for kind, needs in source.kinds.items():
            self._load(kind, needs)

    @property
    def models(self) -> Sequence[ServedModel]:
        """The loaded models, one for each kind."""
        return tuple(self._models.values())

    def start(self) -> None:
        """Begin to answer; a second call does nothing."""
        if not self._is_running:
            self._is_running = True
            # Collecting garbage would otherwise walk the libraries' objects again and again, which
            # holds up the answers for a few tenths of a second.
            gc.collect()
            gc.freeze()
            for model in self.models:
                model.start()

    def require_named(self) -> None:
        """Load each adapter that was named or pinned, not merely found in the folder.

        Raises:
            LorakitError: One of them does not exist or cannot be served; see
                `AdapterStore.lease`.
        """
        for name in sorted({*self.source.places.named, *self._settings.store.pinned}):
            _, kind = self.find_adapter(name)
            self._models[kind].store.lease(name).result().release()

    def stop(self, *, finish_running: bool = True) -> None:
        """End all threads.

        Args:
            finish_running: Whether what was asked is answered first.
        """
        if self._is_running:
            self._is_running = False
            gc.unfreeze()  # frozen objects are never collected, and models are in circles
        for model in self.models:
            model.stop(finish_running=finish_running)
        self._loader.shutdown(wait=False, cancel_futures=True)

    # ---- what there is ----

    def overview(self) -> Overview:
        """Return what is served now."""
        return Overview(
            self.base_name,
            self.source.base.name,
            tuple(model.kind for model in self.models),
            self.models[0].base.answers_alone,
            bool(self.models[0].base.tokenizer.chat_template),
            sum(model.base.shared_bytes for model in self.models),
            tuple(self.adapters()),
        )

    def in_memory(self) -> list[str]:
        """Return the names of the adapters that a model carries."""
        return sorted({name for model in self.models for name in model.store.in_memory()})

    def adapters(self) -> Iterator[tuple[KnownAdapter, ModelKind]]:
        """Yield every adapter with its kind, by name."""
        by_kind = {
            kind: {known.name: known for known in model.store.describe_all()}
            for kind, model in self._models.items()
        }
        for name in sorted(set().union(*by_kind.values())):
            anywhere = next(known[name] for known in by_kind.values() if name in known)
            kind = self._kind_of(anywhere)
            yield by_kind.get(kind, {}).get(name, anywhere), kind

    def find_adapter(self, name: str) -> tuple[KnownAdapter, ModelKind]:
        """Return an adapter and its kind.

        Raises:
            RequestError: There is none of that name.
        """
        for model in self.models:
            try:
                known = model.store.find(name)
            except AdapterNameError:
                continue
            return known, self._kind_of(known)
        names = {known.name for model in self.models for known in model.store.describe_all()}
        raise unknown_model(name, [self.base_name, *sorted(names)])

    def _kind_of(self, known: KnownAdapter) -> ModelKind:
        kinds = list(self._models)
        kind = known.kind or kinds[0]
        if kind.task in TASKS_WITH_LABELS and kind.labels is None:  # its files do not say how many
            return next((each for each in kinds if each.task == kind.task), kinds[0])
        return kind

    # ---- finding a model ----

    async def find(self, name: str, tasks: Collection[TaskType], what: str) -> Found:
        """Return the model that a request names.

        Args:
            name: Name of the base or of an adapter.
            tasks: Tasks that the call is for.
            what: What the call does, such as "chat".

        Raises:
            RequestError: There is no such model, or it is for another task.
        """
        if name == self.base_name:
            return Found(self._base_for(tasks, what), None)
        known, kind = self.find_adapter(name)
        if kind.task not in tasks:
            raise RequestError(
                f"The model '{name}' cannot {what}: it is for {kind.task}, expected "
                f"{' or '.join(tasks)}. Use {_WAYS[kind.task]}.",
                param="model",
                code="wrong_task",
            )
        model = self._models.get(kind)
        if model is None:
            loop = asyncio.get_running_loop()
            model = await loop.run_in_executor(self._loader, self._load_for, known, kind)
        return Found(model, known.name)

    def _base_for(self, tasks: Collection[TaskType], what: str) -> ServedModel:
        for model in self.models:
            does_all = len(tasks) == len(TaskType)
            if model.kind.task in tasks and (does_all or model.base.answers_alone):
                return model
        raise RequestError(
            f"The base '{self.base_name}' alone cannot {what}: it is served for "
            f"{first_few(str(model.kind) for model in self.models)}, and a base alone has no "
            "head that was trained for that. Name an adapter; GET /v1/models lists them.",
            param="model",
            code="wrong_task",
        )

    # ---- adapters at run time ----

    async def load_adapter(self, name: str, path: str) -> KnownAdapter:
        """Serve one more adapter.

        Raises:
            LorakitError: The name is taken, the path is outside the root, or the adapter cannot
                be served; see `AdapterStore.load`.
        """
        taken = {self.base_name, *(known.name for known, _ in self.adapters())}
        if name in taken:
            raise RequestError(
                f"The adapter cannot be loaded as '{name}': a model of this name is served. Unload "
                "it first, or choose another name.",
                param="lora_name",
                code="name_taken",
            )
        loop = asyncio.get_running_loop()
        model = await loop.run_in_executor(self._loader, self._model_for, path)
        known = await asyncio.wrap_future(model.store.load(name, path))
        for other in self.models:  # so that the name means the same for all
            if other is not model:
                with suppress(AdapterNameError):
                    other.store.add(name, known.path)
        return known

    def _model_for(self, path: str) -> ServedModel:
        """Return the model for the adapter at a path below the root."""
        root = self.source.places.root
        place = None if root is None else adapter_directory(root / path)
        try:
            facts = None if place is None else read_facts(place)
        except (OSError, ValueError):
            facts = None  # the store tells what is wrong with it
        if facts is None or facts.kind is None:
            return self.models[0]
        return self._load(facts.kind, needs_of(facts))

    def unload_adapter(self, name: str) -> None:
        """Stop serving an adapter; requests that use it finish.

        Raises:
            RequestError: There is none of that name.
        """
        self.find_adapter(name)
        for model in self.models:
            with suppress(AdapterNameError):
                model.store.unload(name)

    # ---- loading the base for a kind ----

    def _load_for(self, known: KnownAdapter, kind: ModelKind) -> ServedModel:
        return self._load(kind, needs_of(read_facts(known.path)))

    def _load(self, kind: ModelKind, needs: KindNeeds) -> ServedModel:
        with self._loading:
            if kind in self._models:
                return self._models[kind]
            base = load_base(
                self.source.base,
                kind,
                labels=needs.labels,
                trained_in_full=needs.trained_in_full,
                loaded=[model.base.model for model in self._models.values()],
            )
            model = ServedModel(
                kind,
                base,
                self.base_name,
                self.source.places,
                self._settings,
            )
            for other in self.models[:1]:
                model.store.take_changes(other.store)
            if self._is_running:
                model.start()
            self._models[kind] = model
            openmp.end_waiting_threads()
            return model

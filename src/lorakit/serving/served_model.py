"""One base for one task, with its adapters and whatever runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from lorakit.config import TaskType
from lorakit.models.pretrained import model_limit
from lorakit.serving.answers import Answers
from lorakit.serving.base_models import LoadedBase, ModelKind
from lorakit.serving.engine import Engine, EngineHooks, EngineSettings
from lorakit.serving.pooled.forward_items import ForwardItem, run_forward
from lorakit.serving.pooled.micro_batches import MicroBatches, ModelThread
from lorakit.serving.pooled.written_texts import WrittenItem, run_written
from lorakit.serving.refusals import RequestError
from lorakit.serving.store import AdapterPlaces, AdapterStore, Lease, StoreSettings
from lorakit.serving.text_side import TextSide, TokenizerCache

T = TypeVar("T")

_DEFAULT_MAX_LENGTH = 512
_BATCH_TOKENS = 4096
_KEPT_TEXT_SIDES = 2048


@dataclass(frozen=True)
class ServiceSettings:
    """How models run.

    Attributes:
        engine: Batches, caches and queues of models that continue prompts.
        store: Memory for adapters and the like.
        most_waiting: Texts that may wait for a model that classifies or embeds.
        hooks: Functions for metrics of engines.
    """

    engine: EngineSettings = field(default_factory=EngineSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    most_waiting: int = 1024
    hooks: EngineHooks | None = None


class ServedModel:
    """A model that requests can use, alone or with one of its adapters.

    Attributes:
        kind: What it is for.
        base: The loaded base.
        limit: Number of tokens of its context; None without a limit.
        store: Its adapters.
        engine: What continues prompts; None for tasks that do not.
        batches: What runs whole texts.
    """

    def __init__(
        self,
        kind: ModelKind,
        base: LoadedBase,
        base_name: str,
        places: AdapterPlaces,
        settings: ServiceSettings,
    ):
        """Put a loaded base, its adapters and an engine together; nothing runs yet."""
        self.kind = kind
        self.base = base
        self.base_name = base_name
        self.limit = model_limit(base.model)
        self.engine: Engine | None = None
        self._thread: ModelThread | None = None
        if kind.task is TaskType.CAUSAL_LM:
            self.engine = Engine(base.model, base.tokenizer, settings.engine, settings.hooks)
            between_steps: Callable[..., Any] = self.engine.between_steps
        else:
            self._thread = ModelThread(f"model-{kind.task}")
            between_steps = self._thread.between_steps
        self.store = AdapterStore(
            base.model,
            base_name,
            places,
            run_between_steps=between_steps,
            visit=None if self.engine is None else self.engine.visit,
            require_base=base.require_weights_of_training,
            settings=settings.store,
        )
        # A batch of texts holds up the answers that are being written, as a chunk of a prompt does.
        chunk_tokens = settings.engine.prefill_chunk_tokens
        self.batches = MicroBatches(
            self._run_batch,
            between_steps,
            most_tokens=_BATCH_TOKENS if self.engine is None else chunk_tokens,
            most_waiting=settings.most_waiting,
        )
        self._rows = base.model.get_input_embeddings().weight.shape[0]  # type: ignore[union-attr]  # models of texts have embeddings
        self._tokenizers = TokenizerCache(
            base.tokenizer, trust_remote_code=base.source.trust_remote_code
        )
        self._texts = ThreadPoolExecutor(1, thread_name_prefix=f"texts-{kind.task}")
        self._text_sides: dict[Any, TextSide] = {}

    @property
    def most_tokens(self) -> int | None:
        """Tokens that a prompt and its answer can have together; None without a limit."""
        return self.limit if self.engine is None else self.engine.most_tokens

    # ---- life ----

    def start(self) -> None:
        """Begin to answer."""
        if self.engine is not None:
            self.engine.start()
        self.store.start_watching()

    def stop(self, *, finish_running: bool = True) -> None:
        """End all threads.

        Args:
            finish_running: Whether what was asked is answered first.
        """
        self.store.stop_watching()
        if self.engine is not None:
            self.engine.stop(finish_running=finish_running)
        if self._thread is not None:
            self._thread.stop(finish_running=finish_running)
        self._texts.shutdown(wait=False, cancel_futures=True)

    # ---- adapters and texts ----

    @asynccontextmanager
    async def using(
        self, adapter: str | None, *, to_generate: bool = False
    ) -> AsyncIterator[tuple[Lease, TextSide]]:
        """Hold an adapter, or the base alone, inside the block; answers may outlive it.

        Args:
            adapter: Its name; None for the base alone.
            to_generate: Whether the engine will be asked, which may have no place.

        Raises:
            QueueFullError: Too many requests wait for the engine.
            LorakitError: The adapter cannot be loaded; see `AdapterStore.lease`.
        """
        if to_generate and self.engine is not None:
            self.engine.require_place()
        with Lease() if adapter is None else await self.store.wait_for_lease(adapter) as lease:
            yield lease, await self.in_text_thread(self._text_side, lease)

    async def in_text_thread(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run what tokenizes, which may take long, outside the event loop."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._texts, lambda: function(*args, **options))

    def _text_side(self, lease: Lease) -> TextSide:
        key = (lease.companions, lease.files_key)
        found = self._text_sides.get(key)
        if found is None:
            if len(self._text_sides) >= _KEPT_TEXT_SIDES:
                self._text_sides.pop(next(iter(self._text_sides)))
            settings, tokenizer = lease.settings, self._tokenizers.get(lease.companions)
            labels = settings.labels or self.base.labels
            limit = min(self.limit or _DEFAULT_MAX_LENGTH, _DEFAULT_MAX_LENGTH)
            max_length = settings.max_length or limit
            found = TextSide(self.base.model, tokenizer, settings, labels, max_length)
            self._text_sides[key] = found
        return found

    def check_ids(self, ids: Sequence[int], param: str, *, may_be_empty: bool = True) -> None:
        """Refuse token ids that the model does not have.

        Raises:
            RequestError: One is outside the vocabulary, or there are none where some are needed.
        """
        wrong = [one for one in ids if not 0 <= one < self._rows]
        if wrong or not (ids or may_be_empty):
            got = f"token {wrong[0]}" if wrong else "no token"
            raise RequestError(
                f"The parameter '{param}' is wrong: got {got}, expected token ids from 0 to "
                f"{self._rows - 1}.",
                param=param,
            )

    # ---- answers ----

    def answers(self, lease: Lease) -> Answers:
        """Return the answers of the engine to one request, none asked for yet.

        Raises:
            RequestError: The model does not continue prompts.
        """
        if self.engine is None:
            raise RequestError(f"A model for {self.kind} does not continue prompts.", param="model")
        return Answers(self.engine, lease)

    async def forward(
        self, items: Sequence[ForwardItem] | Sequence[WrittenItem], lease: Lease
    ) -> list[Any]:
        """Return the results of items for whole texts.

        Raises:
            RequestError: Too many wait already.
        """
        futures = self.batches.submit(items)
        for future in futures:
            lease.hold()
            future.add_done_callback(lease.release)
        try:
            return await asyncio.gather(*(asyncio.wrap_future(future) for future in futures))
        finally:
            for future in futures:
                future.cancel()

    def _run_batch(self, items: Sequence[Any]) -> Sequence[Tensor] | Sequence[Any]:
        run: Any = run_written if isinstance(items[0], WrittenItem) else run_forward
        return run(self.base.model, items)

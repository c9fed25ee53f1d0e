"""A stress of the server: requests of many adapters come, are cancelled, and adapters change.

Each answer is compared with its request alone, with its adapter alone: a greedy answer is right if
each of its tokens is the likeliest one after those before it, which one forward pass of a model
that carries this adapter only tells. Where the two likeliest tokens are closer than rounding, the
other one counts as a tie.

    python -m benchmarks.serving --stress 2000
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lorakit
from benchmarks.models import build_model, shape_named, shared_copy
from benchmarks.serving_engines import tokenizer_of_any_model
from lorakit.adapters import Adapter
from lorakit.serving.base_models import BaseSource, LoadedBase, ModelKind
from lorakit.serving.engine import EngineSettings
from lorakit.serving.requests import Finished, GenerationRequest, NewText, Sampling, TokenLogprob
from lorakit.serving.served_model import ServedModel, ServiceSettings
from lorakit.serving.store import AdapterPlaces, StoreSettings
from lorakit.serving.store.content_hash import content_hash

TIE = 1e-5
"""Two logits that are closer may change places by rounding."""
_SHAPE = "tiny-llama"
_LARGER_WEIGHTS = 15.0
"""Factor of the base's random weights, so that its likeliest token stands out."""
_ADAPTER_SPREAD = 0.25
_KINDS: tuple[dict[str, Any], ...] = (
    {"r": 4},
    {"r": 7, "use_rslora": True, "target_modules": ["q_proj", "down_proj"]},
    {"r": 3, "use_dora": True},
    {"r": 2, "modules_to_save": ["lm_head"]},
    {"r": 2, "rank_pattern": {"v_proj": 5}, "alpha_pattern": {"v_proj": 3}},
    {"r": 2, "trainable_token_indices": [5, 9, 11]},
    {"r": 2, "target_modules": ["embed_tokens", "o_proj"]},
)
_BEGINNINGS = 6
_POPULAR = 4
"""Adapters that half of the requests are for."""
_BEGINNING_TOKENS = (0, 16, 32, 48)
_LONGEST_END, _MOST_TOKENS = 30, 40
_CANCELLED, _ABANDONED, _OF_THE_BASE = 0.15, 0.05, 0.05
_WAIT_S = 120.0


@dataclass(frozen=True)
class StressPlan:
    """How hard the stress is.

    Attributes:
        requests: Number of requests.
        adapters: Number of adapters.
        clients: Requests that are under way at the same time.
        in_memory: Adapters that fit into the memory for them.
        requests_per_rewrite: An adapter is rewritten each time that so many requests have begun.
        seed: Seed of everything that is drawn.
    """

    requests: int = 2000
    adapters: int = 64
    clients: int = 48
    in_memory: int = 40
    requests_per_rewrite: int = 20
    seed: int = 0


@dataclass
class StressReport:
    """What came of a stress.

    Attributes:
        ends: How many requests ended in which way.
        differences: Descriptions of answers that are not those of the request alone.
        tokens: Tokens that were compared.
        ties: Tokens among them that another one ties with.
        logprob_error: Largest difference of a log-probability.
        rewrites: Times that an adapter was rewritten.
        across_rewrites: Answers whose adapter was rewritten while they ran.
        counted: Counts of the engine and of the store.
        left: Leases and requests that remain although nobody uses them.
    """

    ends: Counter[str] = field(default_factory=Counter[str])
    differences: list[str] = field(default_factory=list[str])
    tokens: int = 0
    ties: int = 0
    logprob_error: float = 0.0
    rewrites: int = 0
    across_rewrites: int = 0
    counted: dict[str, int] = field(default_factory=dict[str, int])
    left: int = 0

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in sorted(self.ends.items()))
        counted = ", ".join(f"{count} {what}" for what, count in self.counted.items())
        return (
            f"{self.ends.total()} requests ({ends}); {len(self.differences)} differences, "
            f"{self.ties} ties among {self.tokens} tokens, log-probabilities to "
            f"{self.logprob_error:.1e}; {self.rewrites} rewrites, {self.across_rewrites} answers "
            f"across one; {counted}; {self.left} leases or requests left"
        )


@dataclass
class _Asked:
    """One request, and what came of it."""

    number: int
    prompt: list[int]
    adapter: str | None
    most_tokens: int
    cancel_after: int | None
    abandon_after_s: float | None
    stop_ids: frozenset[int]
    version: str = ""
    tokens: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    end: str = ""


def stress(plan: StressPlan) -> StressReport:
    """Run a stress, compare every answer, and return what came of it."""
    base = _base()
    report = StressReport()
    with tempfile.TemporaryDirectory() as folder:
        library = _Library(base, Path(folder), plan)
        with _serving(shared_copy(base), Path(folder), plan, library) as model:
            asked = asyncio.run(_ask_all(model, library, plan, report))
            _note_counts(model, report)
    _compare_all(base, library, asked, report)
    return report


def _base() -> Any:
    model: Any = build_model(shape_named(_SHAPE)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(_LARGER_WEIGHTS)
    return model.requires_grad_(False)


class _Library:
    """The adapters on disk, and all versions of each that there ever were."""

    def __init__(self, base: Any, folder: Path, plan: StressPlan):
        self._base, self._folder, self._seed = base, folder, plan.seed
        self.names = [f"adapter-{number}" for number in range(plan.adapters)]
        self.history: dict[str, list[str]] = {name: [] for name in self.names}
        self.versions: dict[str, Adapter] = {}
        for name in self.names:
            self.rewrite(name)

    def rewrite(self, name: str) -> None:
        """Write another adapter into a directory, often one of another kind."""
        number, version = self.names.index(name), len(self.history[name])
        model = shared_copy(self._base)
        config = {"lora_alpha": 4, **_KINDS[(number + version) % len(_KINDS)]}
        lorakit.add_adapter(model, lorakit.LoraConfig(**config), "written")
        generator = torch.Generator().manual_seed(1000 * (self._seed + version) + number)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
                    parameter.mul_(_ADAPTER_SPREAD)
        lorakit.save_adapter(model, self._folder / name, "written")
        adapter = Adapter.load(self._folder / name)
        key = content_hash(adapter)
        self.versions[key] = adapter
        self.history[name].append(key)

    def bytes_of(self, count: int) -> int:
        """Return the memory of so many adapters of middling size."""
        sizes = [
            sum(A.nbytes + B.nbytes for A, B in adapter.factors.values())
            + sum(tensor.nbytes for tensor in adapter.replaced.values())
            for adapter in self.versions.values()
        ]
        return count * sum(sizes) // len(sizes)


@contextmanager
def _serving(base: Any, folder: Path, plan: StressPlan, library: _Library) -> Iterator[ServedModel]:
    model = ServedModel(
        ModelKind(lorakit.TaskType.CAUSAL_LM),
        LoadedBase(base, tokenizer_of_any_model(), (), True, 0, BaseSource("base"), None),
        "base",
        AdapterPlaces(folder=folder, root=folder),
        ServiceSettings(
            # Small, so that answers lose their place and prompts are read in several pieces.
            engine=EngineSettings(
                max_batch_rows=24, kv_bytes=112 << 10, prefill_chunk_tokens=32,
                prefix_cache_bytes=1 << 20,
            ),
            store=StoreSettings(
                memory_bytes=library.bytes_of(plan.in_memory), wait_for_room_s=_WAIT_S,
                scan_every_s=0.2,
            ),
            most_waiting=plan.requests,
        ),
    )  # fmt: skip
    model.start()
    try:
        yield model
    finally:
        model.stop(finish_running=False)


def _requests(plan: StressPlan, names: Sequence[str], vocabulary: int) -> list[_Asked]:
    draw = random.Random(plan.seed)

    def words(count: int) -> list[int]:
        return [draw.randrange(3, vocabulary) for _ in range(count)]

    beginnings = [words(max(_BEGINNING_TOKENS)) for _ in range(_BEGINNINGS)]
    popular = (_POPULAR, len(names))
    asked = []
    for number in range(plan.requests):
        beginning = draw.choice(beginnings)[: draw.choice(_BEGINNING_TOKENS)]
        most = draw.randint(1, _MOST_TOKENS)
        one = _Asked(
            number,
            beginning + words(draw.randint(1, _LONGEST_END)),
            None if draw.random() < _OF_THE_BASE else draw.choice(names[: draw.choice(popular)]),
            most,
            draw.randint(0, most) if draw.random() < _CANCELLED else None,
            draw.random() * 0.5 if draw.random() < _ABANDONED else None,
            frozenset([draw.randrange(3, vocabulary)]),
        )
        asked.append(one)
    return asked


async def _ask_all(
    model: ServedModel, library: _Library, plan: StressPlan, report: StressReport
) -> list[_Asked]:
    """Let clients ask one request after the other, and rewrite adapters meanwhile."""
    asked = _requests(plan, library.names, shape_named(_SHAPE).vocabulary)
    waiting = iter(asked)
    begun = asyncio.Semaphore(0)

    async def client() -> None:
        for one in waiting:
            begun.release()
            try:
                async with asyncio.timeout(one.abandon_after_s):
                    await _ask(model, library, one, report)
            except TimeoutError:
                one.end = "abandoned"

    async def rewriter() -> None:
        draw = random.Random(plan.seed + 1)
        while True:
            for _ in range(plan.requests_per_rewrite):
                await begun.acquire()
            await asyncio.to_thread(library.rewrite, draw.choice(library.names))
            report.rewrites += 1

    rewriting = asyncio.create_task(rewriter())
    await asyncio.gather(*(client() for _ in range(plan.clients)))
    rewriting.cancel()
    await asyncio.gather(rewriting, return_exceptions=True)
    await _settle(model)
    return asked


async def _ask(model: ServedModel, library: _Library, one: _Asked, report: StressReport) -> None:
    history = library.history.get(one.adapter or "", [])
    newest = len(history) - 1
    async with model.using(one.adapter) as (shared, _):
        one.version = shared.content_hash
        sampling = Sampling(
            max_tokens=one.most_tokens, temperature=0.0, stop_token_ids=one.stop_ids, logprobs=0
        )
        answers = model.answers(shared)
        answers.ask(
            GenerationRequest(tuple(one.prompt), shared.carried_name, shared.content_hash, sampling)
        )
    try:
        if one.cancel_after == 0:
            answers.cancel()
        async for _, event in answers.events():
            if isinstance(event, NewText):
                one.tokens += event.token_ids
                one.logprobs += event.logprobs
                if len(one.tokens) == one.cancel_after:
                    answers.cancel()
            else:
                _note_end(one, event)
    finally:
        answers.cancel()
    if one.version and one.version in history[:newest]:
        report.differences.append(f"request {one.number}: a version older than the newest")
    if one.version and history[-1] != one.version:
        report.across_rewrites += 1


def _note_end(one: _Asked, event: Finished) -> None:
    one.end = event.reason
    if (event.prompt_tokens, event.completion_tokens) != (len(one.prompt), len(one.tokens)):
        one.end = f"wrong counts: {event}"


async def _settle(model: ServedModel) -> None:
    """Wait until cancelled requests have left the engine."""
    engine: Any = model.engine
    for _ in range(100):
        if not (engine.stats.running or engine.stats.waiting):
            break
        await asyncio.sleep(0.05)


def _note_counts(model: ServedModel, report: StressReport) -> None:
    engine: Any = model.engine
    stats, counts = engine.stats, model.store.counts().values()
    report.left = (
        stats.running + stats.waiting + sum(one.leases for one in model.store.describe_all())
    )
    report.counted = {
        "preemptions": stats.preemptions,
        "cached tokens": stats.cached_tokens,
        "loads": sum(one.loads for one in counts),
        "evictions": sum(one.evictions for one in counts),
        "refusals": sum(one.refusals for one in counts),
    }


def _compare_all(base: Any, library: _Library, asked: list[_Asked], report: StressReport) -> None:
    """Compare every answer with its request alone, adapter by adapter."""
    by_version: dict[str, list[_Asked]] = {}
    for one in asked:
        by_version.setdefault(one.version, []).append(one)
        report.ends[one.end or "lost"] += 1
        if one.end not in ("stop", "length", "cancelled", "abandoned"):
            report.differences.append(f"request {one.number}: {one.end or 'lost'}")
    for version, answered in by_version.items():
        model = shared_copy(base)
        if version:
            lorakit.add_adapter(model, library.versions[version], "alone", trainable=False)
            model.eval()
        for one in answered:
            _compare(model, one, report)


def _compare(model: Any, one: _Asked, report: StressReport) -> None:
    """Compare one answer, by one forward pass over the prompt and the answer."""
    if one.adapter is not None and not one.version:
        return  # abandoned before it had its adapter
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([one.prompt + one.tokens])).logits[0].float()
    following = logits[len(one.prompt) - 1 :]  # (tokens + 1, vocabulary)
    problem = _end_problem(one, following[-1], report)
    for place, token in enumerate(one.tokens):
        here = following[place]
        report.tokens += 1
        # A stop token that was the likeliest would have ended the answer.
        if not _is_likeliest(here, token, report) or token in one.stop_ids:
            problem = f"token {place} is {token}, alone it is {int(here.argmax())}"
            break
        error = abs(float(here.log_softmax(-1)[token]) - one.logprobs[place].logprob)
        report.logprob_error = max(report.logprob_error, error)
    if problem:
        name = f"{one.adapter} {one.version[:8]}"
        report.differences.append(f"request {one.number} of {name}, {one.end}: {problem}")


def _end_problem(one: _Asked, last: Tensor, report: StressReport) -> str:
    """Return what is wrong with where an answer ended, or "" for nothing."""
    if one.end == "length" and len(one.tokens) != one.most_tokens:
        return f"{len(one.tokens)} tokens, expected {one.most_tokens}"
    if one.end == "stop" and not any(_is_likeliest(last, t, report) for t in one.stop_ids):
        return f"stopped where the likeliest token is {int(last.argmax())}"
    return ""


def _is_likeliest(logits: Tensor, token: int, report: StressReport) -> bool:
    gap = float(logits.max() - logits[token])
    report.ties += 0 < gap < TIE
    return gap < TIE

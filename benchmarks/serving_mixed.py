"""Requests of mixed lengths that are there at once: how many tokens per second each way gives."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from benchmarks.load_generator import Work, closed_loop, mixed_work
from benchmarks.measure import turns
from benchmarks.models import Shape
from benchmarks.options import Options
from benchmarks.results import Row
from benchmarks.serving_engines import continuous, engine_of, padded
from benchmarks.variants import PEFT, peft_copy, quiet_peft, saved_adapter, why_not

MIXED = "mixed lengths"
BEST_STATIC = "best static batches"
CONTINUOUS = "transformers' continuous batching"
ONE_AT_A_TIME = f"{PEFT}, one at a time"
REQUESTS = 32
STATIC_SIZES = (8, 16, 32)
_PEER_REQUESTS, _PEER_ADAPTERS = 4, 4
_MOST_OTHERS = 0.1
"""Share of answers that may differ between ways: where two tokens tie, either is right."""

Way = Callable[[], list[list[int]]]


def engine_variant(adapters: int) -> str:
    """Return what rows call the engine with so many adapters."""
    if not adapters:
        return "engine, base"
    return f"engine, {adapters} adapter{'s' if adapters > 1 else ''}"


def adapter_names(count: int) -> tuple[str | None, ...]:
    """Return the names that requests have in turn; None for the base."""
    return tuple(f"a{number}" for number in range(count)) or (None,)


def measure_mixed(
    options: Options,
    shape: Shape,
    base: Any,
    adapted: Any,
    most_adapters: int,
    common: Mapping[str, Any],
) -> list[Row]:
    """Measure all ways in turn; of static batches, the size that is the quickest at first."""
    work = mixed_work(shape.vocabulary, 6 if options.quick else REQUESTS)
    few = work[:_PEER_REQUESTS]
    peer_adapters = min(_PEER_ADAPTERS, most_adapters)
    with ExitStack() as stack:
        plain = stack.enter_context(engine_of(base))
        carrying = stack.enter_context(engine_of(adapted))
        of_peft = _engine(carrying, few, adapter_names(peer_adapters))
        ways: dict[str, Way] = {
            engine_variant(0): _engine(plain, work, adapter_names(0)),
            engine_variant(most_adapters): _engine(carrying, work, adapter_names(most_adapters)),
            CONTINUOUS: lambda: continuous(base, [_pair(one) for one in few]),
        }
        peft = _peft(base, adapted, few, peer_adapters)
        if peft is not None:
            ways[ONE_AT_A_TIME] = peft
        with torch.no_grad():
            answers = {name: way() for name, way in ways.items()}
            size, answers[BEST_STATIC] = _best_static(base, work, options.quick)
            _check(answers, {ONE_AT_A_TIME: of_peft(), None: answers[engine_variant(0)]})
            ways[BEST_STATIC] = _static(base, work, size)
            values = _tokens_per_s(ways, options.rounds)
    print(f"  the best static batches are those of {size}", flush=True)
    fields = {**common, "setting": f"{len(work)} requests", "measure": MIXED, "unit": "tokens/s"}
    return options.keep(options.compared(values, (BEST_STATIC,), **fields))


def _best_static(base: Any, work: Sequence[Work], quick: bool) -> tuple[int, list[list[int]]]:
    """Return the size of the quickest static batches, and the answers."""
    seconds = {}
    answers: list[list[int]] = []
    for size in (2, 4) if quick else STATIC_SIZES:
        began = time.perf_counter()
        answers = _static(base, work, size)()
        seconds[size] = time.perf_counter() - began
    return min(seconds, key=lambda size: seconds[size]), answers


def _tokens_per_s(ways: Mapping[str, Way], rounds: int) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in turns(list(ways), number):
            began = time.perf_counter()
            tokens = sum(map(len, ways[name]()))
            values[name].append(tokens / (time.perf_counter() - began))
    return values


def _pair(work: Work) -> tuple[list[int], int]:
    return list(work.prompt), work.new_tokens


def _static(model: Any, work: Sequence[Work], size: int) -> Way:
    """Return a way that pads batches of a size, in the order of arrival."""

    def answer() -> list[list[int]]:
        answers = []
        for first in range(0, len(work), size):
            answers += padded(model, [_pair(one) for one in work[first : first + size]])
        return answers

    return answer


def _engine(engine: Any, work: Sequence[Work], names: Sequence[str | None]) -> Way:
    named = [
        Work(one.prompt, one.new_tokens, names[number % len(names)])
        for number, one in enumerate(work)
    ]
    return lambda: [one.tokens for one in closed_loop(engine, named, len(named)).answered]


def _peft(base: Any, adapted: Any, work: Sequence[Work], adapters: int) -> Way | None:
    """Return a way that answers one request after the other, each with its adapter."""
    reason = why_not(PEFT, torch.float32, "cpu")
    if reason:
        print(f"  without {PEFT}: {reason}", flush=True)
        return None
    model: Any = None
    for name in adapter_names(adapters):
        with saved_adapter(adapted, str(name)) as directory, quiet_peft():
            if model is None:
                model = peft_copy(base, directory, trainable=False, name=str(name))
            else:
                model.load_adapter(str(directory), adapter_name=name)
    model.eval()

    def answer() -> list[list[int]]:
        answers = []
        for number, one in enumerate(work):
            model.set_adapter(f"a{number % adapters}")
            answers += padded(model, [_pair(one)])
        return answers

    return answer


def _check(
    answers: Mapping[str, list[list[int]]], references: Mapping[str | None, list[list[int]]]
) -> None:
    """Compare the ways without adapters with each other, and PEFT with the engine.

    Raises:
        RuntimeError: More answers differ than ties explain.
    """
    for name, given in answers.items():
        if name.startswith("engine"):
            continue
        pairs = list(zip(given, references.get(name, references[None]), strict=False))
        different = sum(mine != other for mine, other in pairs)
        if different > max(1, _MOST_OTHERS * len(pairs)):
            raise RuntimeError(f"{name}: {different} of {len(pairs)} answers are others.")

"""What one step of the engine costs: with adapters by row, and while an adapter is loaded."""

import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

import lorakit
from benchmarks.load_generator import Work, closed_loop
from benchmarks.measure import turns
from benchmarks.models import Shape, shared_copy
from benchmarks.options import Options
from benchmarks.results import Row, row
from benchmarks.serving_engines import engine_of
from benchmarks.variants import LORAKIT, add_random_adapter

BASE = "base"
DECODE = "decode step"
DELAY = "delay of running answers by a load"
PAUSE = "longest pause between two tokens"
WITH_LOAD, WITHOUT_LOAD = "with a load", "without"
FACTOR_DTYPES = (torch.float32, torch.bfloat16)
_PROMPT_TOKENS = 4
_DECODED_TOKENS = 16
_RUNNING = 8
RUNNING_SETTING = f"{_RUNNING} running"
_STEPS_OF_A_WINDOW = 16
_LONG_ANSWER = 480
"""Tokens of an answer during which adapters are loaded."""


def adapters_variant(count: int, dtype: torch.dtype) -> str:
    """Return what rows call a batch with so many adapters whose factors have a dtype."""
    name = str(dtype).removeprefix("torch.")
    return f"{count} adapter{'s' if count > 1 else ''}, {name} factors"


def decode_setting(rows: int) -> str:
    """Return what rows call a batch of so many answers."""
    return f"{rows} rows"


def with_adapters(
    base: Any, shape: Shape, count: int, r: int, dtype: torch.dtype = torch.float32
) -> Any:
    """Return a copy of the base, over the same weights, that carries adapters a0, a1, ..."""
    model = shared_copy(base)
    for number in range(count):
        add_random_adapter(model, shape, name=f"a{number}", r=r, seed=number, dtype=dtype)
    return model.eval()


def measure_decoding(
    options: Options, shape: Shape, base: Any, common: Mapping[str, Any], rows: int
) -> list[Row]:
    """Measure the engine's steps with full batches, in tokens per second against the base."""
    clocks = {BASE: StepClock()}
    with ExitStack() as stack:
        engines = {BASE: stack.enter_context(engine_of(base, clocks[BASE].hooks, rows))}
        names: dict[str, list[str | None]] = {BASE: [None] * rows}
        for dtype in FACTOR_DTYPES:
            model = with_adapters(base, shape, rows, common["r"], dtype)
            clock = StepClock()
            engine = stack.enter_context(engine_of(model, clock.hooks, rows))
            for count in (1, rows):
                variant = adapters_variant(count, dtype)
                engines[variant], clocks[variant] = engine, clock
                names[variant] = [f"a{number % count}" for number in range(rows)]
        values: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(options.rounds + 1):
            for name in turns(list(engines), number):
                seconds = _full_step_s(engines[name], clocks[name], shape, names[name])
                if number:  # the first round warms up
                    values[name].append(rows / seconds)
    fields = {**common, "setting": decode_setting(rows), "measure": DECODE, "unit": "tokens/s"}
    return options.keep(options.compared(values, (BASE,), **fields))


def _full_step_s(
    engine: Any, clock: "StepClock", shape: Shape, names: Sequence[str | None]
) -> float:
    """Return the median time of the steps in which all rows decode."""
    prompt = tuple(3 + token % (shape.vocabulary - 3) for token in range(_PROMPT_TOKENS))
    clock.steps.clear()
    closed_loop(engine, [Work(prompt, _DECODED_TOKENS, name) for name in names], len(names))
    return statistics.median(s for count, s, _ in clock.steps if count == len(names))


class StepClock:
    """Notes the steps of an engine: (rows, seconds, moment of its end)."""

    def __init__(self) -> None:
        from lorakit.serving.engine import EngineHooks

        self.steps: list[tuple[int, float, float]] = []
        self.hooks = EngineHooks(step=self._note)
        self._noted = threading.Condition()

    def _note(self, rows: int, seconds: float) -> None:
        with self._noted:
            self.steps.append((rows, seconds, time.perf_counter()))
            self._noted.notify_all()

    def wait_for(self, count: int) -> None:
        """Wait until so many steps have been noted in all."""
        with self._noted:
            self._noted.wait_for(lambda: len(self.steps) >= count)


def measure_loads(
    options: Options, shape: Shape, base: Any, common: Mapping[str, Any]
) -> list[Row]:
    """Measure how much later answers end because an adapter is loaded while they run.

    Windows of steps with and without a load take turns while the same answers run.
    """
    clock = StepClock()
    delays: list[float] = []
    pauses: dict[str, list[float]] = {WITH_LOAD: [], WITHOUT_LOAD: []}
    count = options.rounds + 1
    with _store_of(base, shape, count, common["r"], clock) as (engine, store):
        leases = [store.lease("a0").result()]
        running = _Running(engine, leases[0].carried_name)
        clock.wait_for(len(clock.steps) + _STEPS_OF_A_WINDOW)
        for number in range(1, count + 1):
            without = _gaps(clock, None)
            future = store.lease(f"a{number}")
            gaps = _gaps(clock, future)
            leases.append(future.result())
            step_s = statistics.median(without)
            if number == 1:
                continue  # the first warms up
            delays.append((sum(gaps) - len(gaps) * statistics.fmean(without)) / step_s)
            pauses[WITHOUT_LOAD].append(max(without))
            pauses[WITH_LOAD].append(max(gaps))
        running.cancel()
        for lease in leases:
            lease.release()
    fields = {**common, "setting": RUNNING_SETTING}
    delay = row(options.origin, delays, measure=DELAY, variant=LORAKIT, unit="steps", **fields)
    compared = options.compared(pauses, (WITHOUT_LOAD,), measure=PAUSE, unit="s", **fields)
    return options.keep([delay, *compared])


def _gaps(clock: StepClock, load: Any) -> list[float]:
    """Return the times from step to step in a window, which lasts until a load has ended."""
    first = len(clock.steps)
    clock.wait_for(first + _STEPS_OF_A_WINDOW)
    if load is not None:
        load.result()
    clock.wait_for(len(clock.steps) + 2)
    ends = [end for _, _, end in clock.steps[first - 1 :]]
    return [later - earlier for earlier, later in pairwise(ends)]


class _Running:
    """Answers that run until they are cancelled; one that reaches its end begins again."""

    def __init__(self, engine: Any, adapter: str):
        self._engine, self._adapter = engine, adapter
        self._is_cancelled = False
        self._handles = {number: self._ask(number) for number in range(_RUNNING)}

    def _ask(self, number: int) -> Any:
        from lorakit.serving.requests import GenerationRequest, NewText, Sampling

        def take(event: object) -> None:
            if not isinstance(event, NewText) and not self._is_cancelled:
                self._handles[number] = self._ask(number)

        prompt = (3 + number,) * _PROMPT_TOKENS
        sampling = Sampling(max_tokens=_LONG_ANSWER, temperature=0.0)
        request = GenerationRequest(prompt, self._adapter, self._adapter, sampling)
        return self._engine.submit(request, take)

    def cancel(self) -> None:
        """End all answers."""
        self._is_cancelled = True
        for handle in self._handles.values():
            self._engine.cancel(handle)


@contextmanager
def _store_of(
    base: Any, shape: Shape, count: int, r: int, clock: StepClock
) -> Iterator[tuple[Any, Any]]:
    """Run an engine, and a store that knows adapters a0, a1, ... and has loaded none."""
    from lorakit.serving.store import AdapterPlaces, AdapterStore

    with tempfile.TemporaryDirectory() as folder:
        for number in range(count + 1):
            one = shared_copy(base)
            add_random_adapter(one, shape, name="saved", r=r, seed=number)
            lorakit.save_adapter(one, Path(folder) / f"a{number}", "saved")
        model = shared_copy(base)
        with engine_of(model, clock.hooks) as engine:
            store = AdapterStore(
                model,
                BASE,
                AdapterPlaces(Path(folder)),
                run_between_steps=engine.between_steps,
                visit=engine.visit,
            )
            try:
                yield engine, store
            finally:
                store.stop_watching()

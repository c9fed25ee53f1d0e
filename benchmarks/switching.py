"""Many adapters on one base: putting one in, loading the k-th, and switching between them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lorakit
from benchmarks.measure import TIME, Stopwatch, repeated
from benchmarks.models import Shape, build_model, shared_copy
from benchmarks.options import Options, parse
from benchmarks.results import Row, row
from benchmarks.step import row_fields
from benchmarks.variants import (
    LORAKIT,
    PEFT,
    add_random_adapter,
    quiet_peft,
    saved_adapter,
    why_not,
)

INJECT = "add a fresh adapter"
LOAD = "load an adapter from disk"
SWITCH = "switch"
_SWITCHES_IN_A_SAMPLE = 4


@dataclass(frozen=True)
class Library:
    """How one library does the three things.

    Attributes:
        name: Variant name.
        most: Largest number of adapters that it is asked to hold.
        inject: Adds a fresh adapter to a plain model.
        first: Loads the first adapter into a plain model and returns what `more` goes on with.
        more: Loads another adapter under a name.
        switch: Makes one adapter the active one.
    """

    name: str
    most: int
    inject: Callable[[nn.Module], object]
    first: Callable[[nn.Module, Path, str], Any]
    more: Callable[[Any, Path, str], object]
    switch: Callable[[Any, str], object]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("switching", __doc__, arguments)
    dtype = options.device_dtype
    rows = []
    for shape in options.shapes_or():
        print(f"{shape.name}, {dtype}", flush=True)
        rows += measure(options, shape, dtype)
    return rows


def measure(options: Options, shape: Shape, dtype: torch.dtype) -> list[Row]:
    """Measure one shape."""
    base = build_model(shape, dtype, options.device).eval()
    adapted = shared_copy(base)
    add_random_adapter(adapted, shape, r=options.r or 8, rounded_to=dtype)
    common = row_fields("switching", shape, dtype, 0.0, options.r or 8)
    common |= {"setting": "", "unit": "s"}
    libraries = _libraries(options, shape, dtype)
    rows = _measure_injection(options, base, libraries, common)
    with saved_adapter(adapted) as directory:
        del adapted
        held = _measure_loading(options, base, libraries, directory, common, rows)
    return rows + _measure_switching(options, held, common)


def _libraries(options: Options, shape: Shape, dtype: torch.dtype) -> list[Library]:
    r = options.r or 8
    ours = lorakit.LoraConfig(r=r, lora_alpha=2 * r, target_modules=shape.targets)
    libraries = [
        Library(
            LORAKIT,
            4 if options.quick else 256,
            lambda model: lorakit.add_adapter(model, ours),
            _lorakit_first,
            lambda model, path, name: lorakit.load_adapter(model, path, name),
            lorakit.set_adapter,
        )
    ]
    reason = why_not(PEFT, dtype, options.device)
    if reason:
        print(f"  without {PEFT}: {reason}", flush=True)
        return libraries
    with quiet_peft():
        import peft
    config = peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=list(shape.targets))

    def first(model: nn.Module, path: Path, name: str) -> Any:
        return peft.PeftModel.from_pretrained(
            model, str(path), adapter_name=name, autocast_adapter_dtype=False
        )

    def more(model: Any, path: Path, name: str) -> None:
        model.load_adapter(str(path), adapter_name=name, autocast_adapter_dtype=False)

    libraries.append(
        Library(
            PEFT,
            3 if options.quick else 64,
            lambda model: peft.get_peft_model(model, config, autocast_adapter_dtype=False),
            first,
            more,
            lambda model, name: model.set_adapter(name),
        )
    )
    return libraries


def _lorakit_first(model: nn.Module, path: Path, name: str) -> nn.Module:
    lorakit.load_adapter(model, path, name)
    return model


def _measure_injection(
    options: Options, base: nn.Module, libraries: list[Library], common: dict[str, Any]
) -> list[Row]:
    def sample(library: Library) -> Callable[[Stopwatch], None]:
        def inject(watch: Stopwatch) -> None:
            fresh = shared_copy(base)
            with quiet_peft():
                watch.start()
                library.inject(fresh)
                watch.lap(TIME)

        return inject

    samples = {library.name: sample(library) for library in libraries}
    values = options.timed(samples, warmup=1).by_variant()
    return options.keep(options.compared(values, (PEFT,), measure=INJECT, **common))


def _measure_loading(
    options: Options,
    base: nn.Module,
    libraries: list[Library],
    directory: Path,
    common: dict[str, Any],
    rows: list[Row],
) -> list[tuple[Library, Any, int]]:
    """Load adapters one after the other, append rows for the 1st, 2nd, ... and keep the models.

    The same files are loaded every time, so the disk's cache is warm for all. One pass goes all
    the way; the others stop after the second. The seconds of a late adapter are those of the
    loads around it.

    Returns: The libraries with a model that holds many adapters, and how many.
    """
    seconds: dict[tuple[str, int], list[float]] = {}
    held = []
    half_window = 0 if options.quick else options.rounds // 2
    for number in range(options.rounds + 1):
        for library in libraries if number % 2 else reversed(libraries):
            most = library.most if number == options.rounds else 2
            model, times = _load_many(library, shared_copy(base), directory, most, options.device)
            if number == 0:
                continue
            for k in (1, 2):
                seconds.setdefault((library.name, k), []).append(times[k - 1])
            if number == options.rounds:
                held.append((library, model, most))
                for k in [k for k in (64, 256) if k <= most] or [most]:
                    around = times[max(2, k - 1 - 2 * half_window) : k]
                    seconds[library.name, k] = around
    for k in sorted({k for _, k in seconds}):
        values = {name: samples_s for (name, at), samples_s in seconds.items() if at == k}
        fields = {**common, "measure": LOAD, "setting": f"adapter {k}"}
        if k > 2:
            made = [
                _against_second(options, name, samples_s, seconds[name, 2], fields)
                for name, samples_s in values.items()
            ]
        else:
            made = options.compared(values, (PEFT,), **fields)
        rows += options.keep(made)
    return sorted(held, key=lambda one: one[0].name)


def _against_second(
    options: Options, name: str, late: list[float], second: list[float], fields: dict[str, Any]
) -> Row:
    """Make the row of a late adapter, its ratio taken to the same library's second one."""
    ratios = [mine / its for mine, its in zip(late, second, strict=False)]
    return row(options.origin, late, variant=name, ratio_to="adapter 2", ratios=ratios, **fields)


def _load_many(
    library: Library, model: nn.Module, directory: Path, most: int, device: str
) -> tuple[Any, list[float]]:
    """Load `most` adapters called a1, a2, ...; return the model and the seconds of each."""
    times = []
    with quiet_peft():
        for k in range(1, most + 1):
            watch = Stopwatch(device)
            if k == 1:
                model = library.first(model, directory, "a1")
            else:
                library.more(model, directory, f"a{k}")
            watch.lap(TIME)
            times.append(watch.laps[TIME])
    return model, times


def _measure_switching(
    options: Options, held: list[tuple[Library, Any, int]], common: dict[str, Any]
) -> list[Row]:
    """Measure switching to and fro among as many adapters as each model holds."""

    def switch(library: Library, model: Any, name: str) -> Callable[[], None]:
        names = [name, "a1"]

        def once() -> None:
            names.reverse()
            library.switch(model, names[0])

        return once

    samples = {
        f"{library.name}, {most} adapters": repeated(
            switch(library, model, f"a{most}"), _SWITCHES_IN_A_SAMPLE
        )
        for library, model, most in held
    }
    with quiet_peft():
        timings = options.timed(samples, warmup=1)
    rows = []
    peer = next((timings.of(n) for n in samples if n.startswith(PEFT)), [])
    for name, samples_s in timings.by_variant().items():
        library, _, setting = name.partition(", ")
        is_peer = library == PEFT or not peer
        ratios = [] if is_peer else [a / b for a, b in zip(samples_s, peer, strict=True)]
        fields = {**common, "measure": SWITCH, "setting": setting, "variant": library}
        rows.append(row(options.origin, samples_s, ratio_to=PEFT, ratios=ratios, **fields))
    return options.keep(rows)


if __name__ == "__main__":
    main()

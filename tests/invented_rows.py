"""Rows of benchmarks with made-up numbers: what a full run on one CPU would append."""

from collections.abc import Callable
from typing import Any

import torch
from benchmarks import (
    bracketing,
    busy_machine,
    dora,
    dropout_ways,
    growth,
    latency,
    layer_kinds,
    loading,
    memory_plan,
    qlora,
    rows,
    search_memory,
    step,
    switching,
    thin_products,
)
from benchmarks.models import shape_named
from benchmarks.options import parse
from benchmarks.results import Origin, Row, compared, row
from benchmarks.step import FORWARD_BACKWARD, PEAK, SAVED, TOTAL, WITH_OPTIMIZER
from benchmarks.variants import FULL, LIMIT, LORAKIT, LORAKIT_MLP, LORALIB, PEFT, PEFT_FLOAT32

ORIGIN = Origin(
    device="Some CPU, AVX512, bf16 instructions, threads 2",
    torch="2.13.0",
    transformers="5.23.0",
    peft="0.21.2",
    lorakit="0.1.0",
    commit="abc1234",
    date="2026-01-02",
)
SPREAD = (0.98, 0.99, 1.0, 1.0, 1.0, 1.01, 1.02)
PACE = {
    # Time and saved bytes, as multiples of the limit's.
    LIMIT: (1.0, 1.0),
    FULL: (1.5, 1.45),
    LORAKIT: (1.12, 1.3),
    LORAKIT_MLP: (1.1, 1.0),
    PEFT: (1.4, 1.3),
    PEFT_FLOAT32: (1.6, 1.4),
    LORALIB: (1.35, 1.3),
}

Make = Callable[..., list[Row]]


def invented_rows(origin: Origin = ORIGIN) -> list[Row]:
    """Return rows of all benchmarks, with the shapes and settings that they plan on a CPU."""

    def make(values: dict[str, float], references: tuple[str, ...], **common: Any) -> list[Row]:
        own = {
            name: [value] if common["unit"] == "B" else rounds(value, number)
            for number, (name, value) in enumerate(values.items())
        }
        return compared(origin, own, references, **common)

    return [
        *_step(make),
        *_growth(make),
        *_latency(make),
        *_decoding(make),
        *_switching(make, origin),
        *_bracketing(make),
        *_dropping(make),
        *_magnitudes(make),
        *_kinds_of_layers(make),
        *_on_a_busy_machine(make),
        *_quantized(make),
        *_loading(origin),
        *_thin(make),
        *_searching(make, origin),
        *_plans(make, origin),
    ]


def rounds(value: float, number: int = 0) -> list[float]:
    """Return rounds around a value; variants of another `number` spread in another order."""
    shift = number % len(SPREAD)
    return [value * factor for factor in (*SPREAD[shift:], *SPREAD[:shift])]


def _step(make: Make) -> list[Row]:
    made = []
    measures = (
        (FORWARD_BACKWARD, "s", 1e-7),
        (WITH_OPTIMIZER, "s", 1.1e-7),
        (SAVED, "B", 60.0),
        (PEAK, "B", 70.0),
        (TOTAL, "B", 200.0),
    )
    for shape, (dtype, dropout, r) in step.plan(parse("step", "", [])):
        size = shape.tokens * shape.layers * shape.hidden
        names = [name for name in PACE if name != PEFT_FLOAT32 or dtype != torch.float32]
        for measure, unit, scale in measures:
            values = {name: size * scale * PACE[name][unit == "B"] for name in names}
            if dropout:
                values[PEFT] *= 1.6
            made += make(
                values,
                step.REFERENCES,
                benchmark="step",
                measure=measure,
                shape=shape.name,
                setting=f"{shape.rows} x {shape.length}",
                dtype=dtype,
                dropout=dropout,
                r=r,
                unit=unit,
            )
    return made


def _growth(make: Make) -> list[Row]:
    made = []
    for point in growth.plan(parse("growth", "", [])):
        size = point.shape.tokens * point.shape.layers * (1 + point.r / 500)
        for measure, unit, scale in ((FORWARD_BACKWARD, "s", 1e-4), (SAVED, "B", 4e4)):
            made += make(
                {name: size * scale * PACE[name][unit == "B"] for name in growth.VARIANTS},
                step.REFERENCES,
                benchmark="growth",
                measure=measure,
                shape=point.shape.name,
                setting=f"{point.axis} {point.value}",
                r=point.r,
                unit=unit,
            )
    return made


def _latency(make: Make) -> list[Row]:
    made = []
    names = (latency.BASE, latency.UNMERGED, latency.MERGED, latency.PEFT_UNMERGED)
    for shape in latency.plan(parse("latency", "", [])):
        base = shape.tokens * shape.layers * 2e-5
        made += make(
            dict(zip(names, (base, 1.08 * base, base, 1.4 * base), strict=True)),
            (latency.BASE,),
            benchmark="latency",
            measure=latency.FORWARD,
            shape=shape.name,
            setting=f"{shape.rows} x {shape.length}",
            unit="s",
        )
    return made


def _decoding(make: Make) -> list[Row]:
    made = []
    for count, adapters in rows.SETTINGS:
        base = count * 10.0
        values = {rows.BASE: base, LORAKIT: 0.9 * base, PEFT: base / adapters**0.3}
        if count > 32:
            del values[PEFT]
        made += make(
            values,
            (rows.BASE,),
            benchmark="rows",
            measure=rows.DECODE,
            shape="llama-69m",
            setting=f"{count} rows, {adapters} adapters",
            unit="tokens/s",
        )
    return made


def _switching(make: Make, origin: Origin) -> list[Row]:
    common = {"benchmark": "switching", "shape": "llama-69m", "unit": "s"}
    made = make({LORAKIT: 0.01, PEFT: 0.09}, (PEFT,), measure=switching.INJECT, **common)
    for k in (1, 2):
        loading = {"measure": switching.LOAD, "setting": f"adapter {k}", **common}
        made += make({LORAKIT: 0.012, PEFT: 0.1}, (PEFT,), **loading)
    for name, k, seconds, ratio in (
        (PEFT, 64, 0.6, 6.0),
        (LORAKIT, 64, 0.012, 1.0),
        (LORAKIT, 256, 0.012, 1.0),
    ):
        late = {"ratio_to": "adapter 2", "ratios": rounds(ratio), "setting": f"adapter {k}"}
        made.append(
            row(origin, rounds(seconds), measure=switching.LOAD, variant=name, **late, **common)
        )
    for name, most, seconds, others in (
        (LORAKIT, 256, 4e-4, {"ratio_to": PEFT, "ratios": rounds(0.005)}),
        (PEFT, 64, 0.08, {}),
    ):
        among = {"measure": switching.SWITCH, "setting": f"{most} adapters", **others}
        made.append(row(origin, rounds(seconds), variant=name, **among, **common))
    return made


def _bracketing(make: Make) -> list[Row]:
    """The ways meet at twice the tokens on paper forward, and at as many in the whole step."""
    made = []
    for width, out in bracketing.LAYERS:
        paper = bracketing.crossover_tokens(width, out)
        laps = ((bracketing.FORWARD, 2 * paper), (bracketing.FORWARD_BACKWARD, paper))
        for tokens in bracketing.TOKENS:
            for lap, meeting in laps:
                values = {
                    bracketing.BASE: tokens * 1e-9,
                    bracketing.FACTORED: tokens * 1e-9 + 2e-5 * tokens / meeting,
                    bracketing.FORMED: tokens * 1e-9 + 2e-5,
                }
                made += make(
                    values,
                    (bracketing.FORMED,),
                    benchmark="bracketing",
                    measure=lap,
                    shape=f"{width} to {out}",
                    setting=f"tokens {tokens}",
                    unit="s",
                )
    return made


def _dropping(make: Make) -> list[Row]:
    made = []
    for dtype in (torch.float32, torch.bfloat16):
        made += make(
            {dropout_ways.TORCH: 0.01, dropout_ways.KERNEL: 0.001},
            (dropout_ways.TORCH,),
            benchmark="dropout_ways",
            measure=dropout_ways.DROP,
            shape="1024 x 2048",
            dtype=dtype,
            dropout=0.05,
            unit="s",
        )
    return made


def _magnitudes(make: Make) -> list[Row]:
    made = []
    for dropout in dora.DROPOUTS:
        made += make(
            {dora.LORA: 1.0, dora.DORA: 1.1, dora.PEFT_DORA: 1.9},
            (dora.LORA,),
            benchmark="dora",
            measure=FORWARD_BACKWARD,
            shape="llama-69m:4",
            setting="4 x 256",
            dtype=torch.float32,
            dropout=dropout,
            r=8,
            unit="s",
        )
    return made


def _kinds_of_layers(make: Make) -> list[Row]:
    common: dict[str, Any] = {"benchmark": "layer_kinds", "measure": FORWARD_BACKWARD, "unit": "s"}
    found = []
    for layer in layer_kinds.layers(quick=False):
        found += make({LIMIT: 1.0, LORAKIT: 1.1, PEFT: 1.3}, (LIMIT,), shape=layer.name, **common)
    return found


def _quantized(make: Make) -> list[Row]:
    own = {bits: qlora.quantized_name("lorakit", bits) for bits in (4, 8)}
    peers = {bits: qlora.quantized_name("peft", bits) for bits in (4, 8)}
    pace = {LIMIT: 1.0, qlora.DENSE: 1.05, own[4]: 1.1, peers[4]: 1.4, own[8]: 1.1, peers[8]: 1.4}
    references = (*qlora.REFERENCES, *peers.values())
    made = []
    for name in qlora.SHAPES:
        shape = shape_named(name)
        for dtype in (torch.float32, torch.bfloat16):
            for dropout, r in qlora.columns(parse("qlora", "", [])):
                common: dict[str, Any] = {
                    "benchmark": "qlora",
                    "shape": name,
                    "setting": f"{shape.rows} x {shape.length}",
                    "dtype": dtype,
                    "dropout": dropout,
                    "r": r,
                }
                for lap in (FORWARD_BACKWARD, WITH_OPTIMIZER):
                    made += make(pace, references, measure=lap, unit="s", **common)
                for counted in (SAVED, PEAK):
                    values = {variant: 1e8 * value for variant, value in pace.items()}
                    made += make(values, references, measure=counted, unit="B", **common)
                bits = {variant: float(variant[-6]) for variant in (*own.values(), *peers.values())}
                made += make(bits, (), measure=qlora.WEIGHTS, unit="bits", **common)
    return made


def _searching(make: Make, origin: Origin) -> list[Row]:
    """One base of 1.2 GB, and half a gigabyte beside it for each trial."""
    common = {
        "benchmark": "search_memory",
        "shape": "llama-300m",
        "setting": "16 rows",
        "unit": "B",
    }
    peaks = {search_memory.AT_ONCE: 3.1e9, search_memory.ALONE: 1.7e9, search_memory.BOUND: 3.2e9}
    peak = {"measure": search_memory.PEAK_SHARED, **common}
    made = make(peaks, (search_memory.BOUND,), **peak)
    base = {"measure": search_memory.BASE_BYTES, "variant": "base", **common}
    return [*made, row(origin, [1.2e9], **base)]


def _plans(make: Make, origin: Origin) -> list[Row]:
    """Plans that are right to a thousandth, and two that took seconds."""
    made = []
    for name in memory_plan.SHAPES:
        common = {"benchmark": "memory_plan", "shape": name, "setting": "LoRA", "unit": "B"}
        for measure in (memory_plan.SAVED, memory_plan.PEAK):
            values = {memory_plan.PLANNED: 1.001e8, memory_plan.COUNTED: 1e8}
            if measure == memory_plan.PEAK:
                values[memory_plan.RESIDENT] = 1.3e8
            made += make(values, (memory_plan.COUNTED,), measure=measure, **common)
            off = {**common, "measure": memory_plan.OFF.format(measure), "unit": "%"}
            made.append(row(origin, [0.1], variant=memory_plan.PLANNED, **off))
    for name, seconds in (("llama-7b", 5.0), ("llama-70b", 12.0)):
        common = {
            "benchmark": "memory_plan",
            "shape": name,
            "setting": memory_plan.LARGE_SETTING,
            "variant": memory_plan.PLANNED,
        }
        made.append(row(origin, [seconds], measure=memory_plan.SECONDS, unit="s", **common))
        made.append(row(origin, [6.6e8], measure=memory_plan.PROCESS, unit="B", **common))
    return made


def _on_a_busy_machine(make: Make) -> list[Row]:
    made = []
    for load, slower in ((busy_machine.QUIET, 1.0), (busy_machine.BUSY, 4.0)):
        for who in (LIMIT, LORAKIT_MLP, PEFT):
            loop = busy_machine.variant_name(who, busy_machine.IN_A_LOOP)
            short = busy_machine.variant_name(who, busy_machine.BRIEFLY)
            made += make(
                {loop: 0.1 * PACE[who][0] * slower, short: 0.1 * PACE[who][0] * slower**0.5},
                (loop,),
                benchmark="busy_machine",
                measure=busy_machine.MEASURE,
                shape="llama-4m",
                setting=load,
                unit="s",
            )
    return made


def _loading(origin: Origin) -> list[Row]:
    made = []
    sizes = {loading.SHARD: 5e8, loading.BARE: 6e8, loading.LOADED: 8e8, loading.PEAK_RESIDENT: 2e9}
    for measure, size in sizes.items():
        who = ("checkpoint",) if measure == loading.SHARD else (loading.LORAKIT_4, loading.DENSE)
        for variant in who:
            made.append(
                row(
                    origin,
                    [size],
                    benchmark="loading",
                    measure=measure,
                    shape="llama-1b",
                    setting="shards of 500MB",
                    dtype=torch.bfloat16,
                    variant=variant,
                    unit="B",
                )
            )
    return made


def _thin(make: Make) -> list[Row]:
    made = []
    for r in thin_products.RANKS:
        for inside, out in thin_products.LAYERS:
            made += make(
                {thin_products.IN_C: 1e-4 * r, thin_products.IN_TORCH: 1e-3},
                (thin_products.IN_TORCH,),
                benchmark="thin_products",
                measure="down",
                shape=f"{inside} to {out}",
                setting=f"tokens {thin_products.TOKENS}",
                r=r,
                unit="s",
            )
    return made

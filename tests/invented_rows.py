"""Rows of benchmarks with made-up numbers: what a full run on one CPU would append."""

from collections.abc import Callable
from typing import Any

import torch
from benchmarks import (
    bracketing,
    busy_machine,
    data_at_scale,
    decode_4bit,
    dora,
    growth,
    latency,
    layer_kinds,
    loading,
    memory_plan,
    predict,
    preferences,
    qlora,
    rows,
    search_memory,
    step,
    switching,
)
from benchmarks import same_quality as quality
from benchmarks.models import shape_named
from benchmarks.options import parse
from benchmarks.results import Origin, Row, compared, row
from benchmarks.step import FORWARD_BACKWARD, PEAK, SAVED, TOTAL, WITH_OPTIMIZER
from benchmarks.variants import FULL, LIMIT, LORAKIT, LORAKIT_MLP, LORALIB, PEFT, PEFT_FLOAT32

from invented_operation_rows import dropout_rows, output_loss_rows, thin_rows
from invented_serving_rows import serving_rows
from invented_together_rows import frozen_part_rows, searches_rows, together_rows

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

    def make(
        benchmark: str, measure: str, shape: str, values: dict[str, float], *references: str,
        unit: str = "s", **common: Any,
    ) -> list[Row]:  # fmt: skip
        numbers = {
            name: [value] if unit == "B" else rounds(value, number)
            for number, (name, value) in enumerate(values.items())
        }
        common |= {"benchmark": benchmark, "measure": measure, "shape": shape, "unit": unit}
        return compared(origin, numbers, references, **common)

    return [
        *_step(make),
        *_growth(make),
        *_latency(make),
        *_decoding(make),
        *_switching(make, origin),
        *_bracketing(make),
        *dropout_rows(make),
        *_magnitudes(make),
        *_preferences(make),
        *_predictions(make),
        *frozen_part_rows(make),
        *searches_rows(make),
        *together_rows(make),
        *_kinds_of_layers(make),
        *_on_a_busy_machine(make),
        *_quantized(make),
        *_loading(make),
        *_large_data(make),
        *thin_rows(make),
        *output_loss_rows(make),
        *_decoding_in_4_bits(make),
        *_searching(make),
        *_plans(make, origin),
        *_ways_to_train(origin),
        *serving_rows(make),
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
            common = {"setting": f"{shape.rows} x {shape.length}", "unit": unit, "dtype": dtype}
            common |= {"dropout": dropout, "r": r}
            made += make("step", measure, shape.name, values, *step.REFERENCES, **common)
    return made


def _growth(make: Make) -> list[Row]:
    made = []
    for point in growth.plan(parse("growth", "", [])):
        size = point.shape.tokens * point.shape.layers * (1 + point.r / 500)
        for measure, unit, scale in ((FORWARD_BACKWARD, "s", 1e-4), (SAVED, "B", 4e4)):
            values = {name: size * scale * PACE[name][unit == "B"] for name in growth.VARIANTS}
            where = {"setting": f"{point.axis} {point.value}", "r": point.r, "unit": unit}
            made += make("growth", measure, point.shape.name, values, *step.REFERENCES, **where)
    return made


def _latency(make: Make) -> list[Row]:
    made = []
    names = (latency.BASE, latency.UNMERGED, latency.MERGED, latency.PEFT_UNMERGED)
    for shape in latency.plan(parse("latency", "", [])):
        base = shape.tokens * shape.layers * 2e-5
        values = dict(zip(names, (base, 1.08 * base, base, 1.4 * base), strict=True))
        batch = f"{shape.rows} x {shape.length}"
        forward = ("latency", latency.FORWARD, shape.name)
        made += make(*forward, values, latency.BASE, setting=batch)
    return made


def _decoding(make: Make) -> list[Row]:
    made = []
    for count, adapters in rows.SETTINGS:
        base = count * 10.0
        values = {rows.BASE: base, LORAKIT: 0.9 * base, PEFT: base / adapters**0.3}
        if count > 32:
            del values[PEFT]
        where = {"setting": f"{count} rows, {adapters} adapters", "unit": "tokens/s"}
        made += make("rows", rows.DECODE, "llama-69m", values, rows.BASE, **where)
    return made


def _switching(make: Make, origin: Origin) -> list[Row]:
    common = {"benchmark": "switching", "shape": "llama-69m", "unit": "s"}
    inject, load = (("switching", what, "llama-69m") for what in (switching.INJECT, switching.LOAD))
    made = make(*inject, {LORAKIT: 0.01, PEFT: 0.09}, PEFT)
    for k in (1, 2):
        made += make(*load, {LORAKIT: 0.012, PEFT: 0.1}, PEFT, setting=f"adapter {k}")
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
                where = ("bracketing", lap, f"{width} to {out}")
                made += make(*where, values, bracketing.FORMED, setting=f"tokens {tokens}")
    return made


def _magnitudes(make: Make) -> list[Row]:
    values = {dora.LORA: 1.0, dora.DORA: 1.03, dora.PEFT_DORA: 1.9}
    where = ("dora", FORWARD_BACKWARD, "llama-69m:4")
    made = []
    for dropout in dora.DROPOUTS:
        made += make(*where, values, dora.LORA, setting="4 x 256", dropout=dropout)
    return made


def _predictions(make: Make) -> list[Row]:
    where = {"setting": predict.texts_setting(predict.TEXT_COUNT)}
    values = {predict.PREDICT: 4.0, predict.PIPELINE: 10.0}
    made = make("predict", predict.CLASSES, predict.SHAPE, values, predict.PIPELINE, **where)
    where = {"setting": predict.prompts_setting(predict.PROMPT_COUNT)}
    values = {predict.PREDICT: 10.0, predict.LINE_BY_LINE: 60.0}
    return made + make(
        "predict", predict.TEXTS, predict.SHAPE, values, predict.LINE_BY_LINE, **where
    )


def _preferences(make: Make) -> list[Row]:
    made = []
    for measure, unit, scale in (
        (FORWARD_BACKWARD, "s", 10.0),
        (WITH_OPTIMIZER, "s", 11.0),
        (PEAK, "B", 1e9),
        (TOTAL, "B", 1.2e9),
    ):
        pace = {preferences.KNOWN: 0.5, preferences.IN_STEP: 0.6, preferences.TRL: 1.0}
        values = {name: scale * value for name, value in pace.items()}
        where = {"setting": "4 pairs x 256", "unit": unit}
        made += make("preferences", measure, "llama-69m", values, preferences.TRL, **where)
    return made


def _kinds_of_layers(make: Make) -> list[Row]:
    values = {LIMIT: 1.0, LORAKIT: 1.1, PEFT: 1.3}
    made = []
    for layer in layer_kinds.layers(quick=False):
        made += make("layer_kinds", FORWARD_BACKWARD, layer.name, values, LIMIT)
    return made


def _quantized(make: Make) -> list[Row]:
    ours = {bits: qlora.quantized_name("lorakit", bits) for bits in (4, 8)}
    peers = {bits: qlora.quantized_name("peft", bits) for bits in (4, 8)}
    pace = {LIMIT: 1.0, qlora.DENSE: 1.05}
    for bits in (4, 8):
        pace |= {ours[bits]: 1.1, peers[bits]: 1.4}
    references = (*qlora.REFERENCES, *peers.values())
    made = []
    for name in qlora.SHAPES:
        shape = shape_named(name)
        for dtype in (torch.float32, torch.bfloat16):
            for dropout, r in qlora.columns(parse("qlora", "", [])):
                common: dict[str, Any] = {"dtype": dtype, "dropout": dropout, "r": r}
                common["setting"] = f"{shape.rows} x {shape.length}"
                for lap in step.LAPS:
                    made += make("qlora", lap, name, pace, *references, **common)
                for counted in (SAVED, PEAK):
                    values = {variant: 1e8 * value for variant, value in pace.items()}
                    made += make("qlora", counted, name, values, *references, unit="B", **common)
                variants = (*ours.values(), *peers.values())
                bits = {variant: float(variant[-6]) for variant in variants}
                made += make("qlora", qlora.WEIGHTS, name, bits, unit="bits", **common)
    return made


def _searching(make: Make) -> list[Row]:
    """One base of 1.2 GB, and half a gigabyte beside it for each trial."""
    common = {"setting": "16 rows", "unit": "B"}
    peaks = {search_memory.AT_ONCE: 3.1e9, search_memory.ALONE: 1.7e9, search_memory.BOUND: 3.2e9}
    name, shape, bound = "search_memory", "llama-300m", search_memory.BOUND
    made = make(name, search_memory.PEAK_SHARED, shape, peaks, bound, **common)
    return made + make(name, search_memory.BASE_BYTES, shape, {"base": 1.2e9}, **common)


def _ways_to_train(origin: Origin) -> list[Row]:
    """Ways that are as accurate as the one they differ from; the seeds are a point apart."""
    common: dict[str, Any] = {"benchmark": quality.NAME, "shape": quality.SHAPE, "r": quality.RANK}
    made = []
    for variant, way in quality.WAYS.items():
        where = {**common, "variant": variant, "dtype": getattr(torch, way.dtype)}
        values = {quality.ACCURACY: 80.0, quality.LOSS: 0.7, quality.PADDING: 58.0}
        values[quality.CPU_TIME] = 300.0
        for seed in quality.SEEDS:
            setting = quality.setting_text(2400, 5, f"seed {seed}")
            for what, value in values.items():
                unit = quality.UNITS[what]
                numbers = [value + seed * (what == quality.ACCURACY)]
                made.append(row(origin, numbers, measure=what, setting=setting, unit=unit, **where))
        if way.compared_with:
            lost = {"measure": quality.LOST.format(way.compared_with), "unit": quality.POINTS}
            made.append(row(origin, [0.5, 0.0, -0.5], setting=quality.SETTING, **lost, **where))
    for name, seconds in (("float32", 0.4), (quality.CHOSEN.format("bfloat16"), 0.2)):
        where = {**common, "variant": name, "unit": "s"}
        made.append(row(origin, [seconds], measure=quality.STEP, **where))
    return made


def _plans(make: Make, origin: Origin) -> list[Row]:
    """Plans that are right to a thousandth, and two that took seconds."""
    made = []
    for name in memory_plan.SHAPES:
        common = {"benchmark": "memory_plan", "shape": name, "variant": memory_plan.PLANNED}
        for measure in (memory_plan.SAVED, memory_plan.PEAK):
            values = {memory_plan.PLANNED: 1.001e8, memory_plan.COUNTED: 1e8}
            if measure == memory_plan.PEAK:
                values[memory_plan.RESIDENT] = 1.3e8
            where = {"setting": "LoRA", "unit": "B"}
            made += make("memory_plan", measure, name, values, memory_plan.COUNTED, **where)
            off = {"measure": memory_plan.OFF.format(measure), "setting": "LoRA", "unit": "%"}
            made.append(row(origin, [0.1], **off, **common))
    for name, seconds in (("llama-7b", 5.0), ("llama-70b", 12.0)):
        common = {"benchmark": "memory_plan", "shape": name, "variant": memory_plan.PLANNED}
        common["setting"] = memory_plan.LARGE_SETTING
        made.append(row(origin, [seconds], measure=memory_plan.SECONDS, unit="s", **common))
        made.append(row(origin, [6.6e8], measure=memory_plan.PROCESS, unit="B", **common))
    return made


def _on_a_busy_machine(make: Make) -> list[Row]:
    made = []
    for load, slower in ((busy_machine.QUIET, 1.0), (busy_machine.BUSY, 4.0)):
        for who in (LIMIT, LORAKIT_MLP, PEFT):
            loop = busy_machine.variant_name(who, busy_machine.IN_A_LOOP)
            short = busy_machine.variant_name(who, busy_machine.BRIEFLY)
            pace = 0.1 * PACE[who][0]
            values = {loop: pace * slower, short: pace * slower**0.5}
            made += make(
                "busy_machine", busy_machine.MEASURE, "llama-4m", values, loop, setting=load
            )
    return made


def _loading(make: Make) -> list[Row]:
    common = {"setting": "shards of 500MB", "dtype": torch.bfloat16, "unit": "B"}
    sizes = {loading.SHARD: 5e8, loading.BARE: 6e8, loading.LOADED: 8e8, loading.PEAK_RESIDENT: 2e9}
    made = []
    for measure, size in sizes.items():
        who = ("checkpoint",) if measure == loading.SHARD else (loading.LORAKIT_4, loading.DENSE)
        made += make("loading", measure, "llama-1b", dict.fromkeys(who, size), **common)
    return made


def _large_data(make: Make) -> list[Row]:
    made = []
    for kind, size in data_at_scale.SIZES.items():
        for measure, value, unit in (
            (data_at_scale.TO_FIRST_STEP, 60.0, "s"),
            (data_at_scale.OF_PROCESSORS, 100.0, "s"),
            (data_at_scale.PEAK, 1.5e9, "B"),
        ):
            values = {data_at_scale.FIRST: value, data_at_scale.AGAIN: value / 2}
            common = {"setting": f"{size:,} {kind}", "unit": unit}
            made += make("data_at_scale", measure, "quickstart", values, **common)
    return made


def _decoding_in_4_bits(make: Make) -> list[Row]:
    made = []
    for shape in decode_4bit.SHAPES:
        for dtype in decode_4bit.DTYPES:
            for count in decode_4bit.ROWS:
                pace = {decode_4bit.DENSE: 20.0, decode_4bit.BUFFER: 10.0, decode_4bit.CODES: 50.0}
                values = {name: count * tokens for name, tokens in pace.items()}
                made += make(
                    *("decode_4bit", rows.DECODE, shape, values),
                    *(decode_4bit.DENSE, decode_4bit.BUFFER),
                    **{"unit": "tokens/s", "setting": f"{count} rows", "dtype": dtype},
                )
    return made

"""What lorakit is meant to reach, and whether the rows say that it does."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks import (
    data_at_scale,
    dora,
    frozen_epochs,
    latency,
    memory_plan,
    predict,
    preferences,
    qlora,
    rows,
    same_quality,
    search_memory,
    serving,
    serving_clients,
    serving_mixed,
    serving_steps,
    switching,
    together,
)
from benchmarks.goal import NOT_MEASURED, Goal, Verdict
from benchmarks.results import NO_BF16, Row, matching, newest
from benchmarks.step import FORWARD_BACKWARD, SAVED, TOTAL
from benchmarks.variants import FULL, LIMIT, LORAKIT, LORAKIT_MLP, PEFT

SHAPE = "llama-69m"
_PEFT_4 = qlora.quantized_name("peft", 4)
_FLOAT32 = {"dtype": "float32", "dropout": 0.0, "r": 8}
_FLOAT32_DROPOUT = {"dtype": "float32", "dropout": 0.05, "r": 8}
_BFLOAT16 = {"dtype": "bfloat16", "dropout": 0.0, "r": 8}
_BFLOAT16_DROPOUT = {"dtype": "bfloat16", "dropout": 0.05, "r": 16}


def _step(
    ratio_to: str,
    column: dict[str, object],
    must: float,
    aim: float | None = None,
    *,
    measure: str = FORWARD_BACKWARD,
    variant: str = LORAKIT_MLP,
) -> Goal:
    what = "step" if measure == FORWARD_BACKWARD else measure
    if variant != LORAKIT_MLP:
        what += ", without the node for whole MLPs"
    where = {"benchmark": "step", "shape": SHAPE, "setting": "4 x 256", "measure": measure}
    names = {LIMIT: "frozen limit", FULL: "full fine-tuning", PEFT: "PEFT"}
    return Goal(
        f"{what} / {names[ratio_to]}",
        {**where, **column, "variant": variant, "ratio_to": ratio_to},
        must,
        aim,
    )


def _forward(variant: str, shape: str, setting: str, must: float, aim: float) -> Goal:
    where = {"benchmark": "latency", "measure": latency.FORWARD, "shape": shape, **_FLOAT32}
    return Goal(
        f"forward, {variant.partition(', ')[2]} / base",
        {**where, "setting": setting, "variant": variant, "ratio_to": latency.BASE},
        must,
        aim,
    )


def _adapters(what: str, setting: str, must: float, **where: object) -> Goal:
    common = {"benchmark": "switching", "shape": SHAPE, "variant": LORAKIT, **_FLOAT32}
    return Goal(what, {**common, "setting": setting, **where}, must)


def _quantized(
    ratio_to: str,
    shape: str,
    column: dict[str, object],
    must: float,
    measure: str = FORWARD_BACKWARD,
) -> Goal:
    what = "step" if measure == FORWARD_BACKWARD else measure
    names = {LIMIT: "frozen limit", qlora.DENSE: "16-bit LoRA's", _PEFT_4: "PEFT's QLoRA"}
    where = {"benchmark": "qlora", "shape": shape, "measure": measure, **column}
    where["setting"] = "4 x 256" if shape == SHAPE else "2 x 128"
    variant = qlora.quantized_name(LORAKIT, 4)
    return Goal(
        f"4-bit base: {what} / {names[ratio_to]}",
        {**where, "variant": variant, "ratio_to": ratio_to},
        must,
    )


def _plan(measure: str, shape: str, setting: str, must: float, unit: str = "%") -> Goal:
    where = {"benchmark": "memory_plan", "measure": measure, "shape": shape, "setting": setting}
    return Goal(measure, {**where, "variant": memory_plan.PLANNED, **_FLOAT32}, must, unit=unit)


_QUANTIZED = tuple(
    goal
    for column in (_FLOAT32, _BFLOAT16)
    for shape in (SHAPE, "llama-300m")
    for goal in (
        _quantized(LIMIT, shape, column, 1.25),
        _quantized(_PEFT_4, shape, column, 0.80),
        _quantized(qlora.DENSE, shape, column, 1.08),
        _quantized(qlora.DENSE, shape, column, 1.00, SAVED),
    )
)

_PLANS = (
    *(
        _plan(memory_plan.OFF.format(measure), shape, "LoRA", must)
        for shape in memory_plan.SHAPES
        for measure, must in ((memory_plan.SAVED, 2.0), (memory_plan.PEAK, 10.0))
    ),
    _plan(memory_plan.SECONDS, "llama-7b", memory_plan.LARGE_SETTING, 20.0, "s"),
    _plan(memory_plan.PROCESS, "llama-7b", memory_plan.LARGE_SETTING, 1.5e9, "B"),
    _plan(memory_plan.SECONDS, "llama-70b", memory_plan.LARGE_SETTING, 60.0, "s"),
)


def _served(what: str, setting: str, must: float, unit: str = "s", **where: object) -> Goal:
    common: dict[str, object] = {"benchmark": "serving", "shape": SHAPE, **_FLOAT32}
    return Goal(what, {**common, "setting": setting, **where}, must, unit=unit)


def _decode_step(adapters: int, dtype: torch.dtype, must: float, aim: float | None) -> Goal:
    variant = serving_steps.adapters_variant(adapters, dtype)
    found = _served(
        f"decode step, {variant} / base",
        serving_steps.decode_setting(serving.ROWS),
        must,
        measure=serving_steps.DECODE,
        variant=variant,
        ratio_to=serving_steps.BASE,
    )
    return replace(found, aim=aim, at_least=True)


def _clients(measure: str, must: float, unit: str) -> Goal:
    setting = serving_clients.clients_setting(1000)
    goal = _served(measure, setting, must, unit, measure=measure, variant=LORAKIT)
    return replace(goal, where={**goal.where, "shape": serving_clients.SHAPE, "r": 4})


_SERVED = (
    *(
        _decode_step(adapters, dtype, must, aim)
        for adapters, must, aim in ((serving.ROWS, 0.85, 0.90), (1, 0.93, None))
        for dtype in serving_steps.FACTOR_DTYPES
    ),
    replace(
        _served(
            f"mixed lengths / {serving_mixed.BEST_STATIC}",
            f"{serving_mixed.REQUESTS} requests",
            1.3,
            measure=serving_mixed.MIXED,
            variant=serving_mixed.engine_variant(0),
            ratio_to=serving_mixed.BEST_STATIC,
        ),
        at_least=True,
    ),
    _served(
        f"{serving.FIRST_TOKEN}, 8 concurrent / {serving.IDLE}",
        serving.FIRST_TOKEN_SETTING,
        2.0,
        measure=serving.FIRST_TOKEN,
        variant=serving.concurrent_variant(serving.CONCURRENT_FOR_FIRST),
        ratio_to=serving.IDLE,
    ),
    _served(
        serving_steps.DELAY,
        serving_steps.RUNNING_SETTING,
        1.0,
        "steps",
        measure=serving_steps.DELAY,
        variant=LORAKIT,
    ),
    _clients(serving_clients.WRONG, 0.0, "answers"),
    _clients(serving_clients.GROWTH, 5.0, "%"),
)

_MAGNITUDES = tuple(
    Goal(
        "a magnitude (DoRA): step / plain LoRA's",
        {
            "benchmark": "dora",
            "measure": FORWARD_BACKWARD,
            "shape": f"{SHAPE}:4",
            "setting": "4 x 256",
            "variant": dora.DORA,
            "ratio_to": dora.LORA,
            **column,
        },
        1.04,
        1.02,
    )
    for column in (_FLOAT32, _FLOAT32_DROPOUT)
)

_PREFERENCES = tuple(
    Goal(
        f"{what}, {variant} / {preferences.TRL}",
        {
            "benchmark": "preferences",
            "measure": measure,
            "shape": SHAPE,
            "setting": "4 pairs x 256",
            "variant": variant,
            "ratio_to": preferences.TRL,
            **_FLOAT32,
        },
        must,
    )
    for what, measure, must in (
        ("DPO step", FORWARD_BACKWARD, 0.70),
        (f"DPO, {TOTAL}", TOTAL, 0.75),
    )
    for variant in (preferences.KNOWN, preferences.IN_STEP)
)

_QUALITY = tuple(
    Goal(
        f"{variant}: {measure}",
        {
            "benchmark": same_quality.NAME,
            "measure": measure,
            "shape": same_quality.SHAPE,
            "setting": same_quality.SETTING,
            "variant": variant,
            "dtype": way.dtype,
            "dropout": 0.0,
            "r": same_quality.RANK,
        },
        same_quality.STANDARD_ERROR_POINTS,
        unit=same_quality.POINTS,
    )
    for variant, way in same_quality.WAYS.items()
    if way.compared_with
    for measure in (same_quality.LOST.format(way.compared_with),)
)

_FROZEN_PARTS = tuple(
    Goal(
        f"{share} adapted, a later {what} / {reference}",
        {
            "benchmark": "frozen_part",
            "measure": measure,
            "shape": SHAPE,
            "setting": "4 x 256",
            "variant": frozen_epochs.kept(share),
            "ratio_to": reference,
            **_FLOAT32,
        },
        must,
        aim,
    )
    for what, measure in (("epoch's step", FORWARD_BACKWARD), ("epoch", frozen_epochs.EPOCH))
    for share, reference, must, aim in (
        ("upper half", frozen_epochs.computed("upper half"), 0.70, 0.66),
        ("upper quarter", frozen_epochs.ALL, 0.30, 0.25),
    )
)


def _large_data(measure: str, kind: str, must: float, unit: str) -> Goal:
    setting = f"{data_at_scale.SIZES[kind]:,} {kind}"
    where = {"benchmark": "data_at_scale", "measure": measure, "variant": data_at_scale.FIRST}
    where |= {"shape": data_at_scale.SHAPE, "setting": setting, **_FLOAT32}
    return Goal(f"{setting}: {measure}", where, must, unit=unit)


_LARGE_DATA = tuple(
    _large_data(measure, kind, must, unit)
    for kind in (data_at_scale.CLASSES, data_at_scale.COMPLETIONS)
    for measure, must, unit in (
        (data_at_scale.TO_FIRST_STEP, 90.0, "s"),
        (data_at_scale.PEAK, 2e9, "B"),
    )
)

GOALS = (
    _step(LIMIT, _FLOAT32, 1.12, 1.05),
    _step(LIMIT, _FLOAT32_DROPOUT, 1.18, 1.08),
    _step(LIMIT, _BFLOAT16, 1.15, 1.07),
    _step(LIMIT, _BFLOAT16_DROPOUT, 1.22, 1.10),
    _step(FULL, _FLOAT32, 0.80, 0.70),
    _step(FULL, _FLOAT32_DROPOUT, 0.80, 0.70),
    _step(FULL, _BFLOAT16, 0.88, 0.70),
    _step(FULL, _BFLOAT16_DROPOUT, 0.88, 0.70),
    _step(PEFT, _FLOAT32, 1.00, measure=SAVED, variant=LORAKIT),
    _step(PEFT, _FLOAT32_DROPOUT, 0.66, measure=SAVED, variant=LORAKIT),
    _step(PEFT, _FLOAT32, 0.88, 0.80, measure=SAVED),
    _step(PEFT, _FLOAT32_DROPOUT, 0.57, 0.50, measure=SAVED),
    _forward(latency.MERGED, SHAPE, "1 x 128", 1.02, 1.00),
    _forward(latency.MERGED, f"{SHAPE}:2", "16 x 256", 1.02, 1.00),
    _forward(latency.MERGED, f"{SHAPE}:2", "32 x 512", 1.02, 1.00),
    _forward(latency.UNMERGED, SHAPE, "1 x 128", 1.12, 1.05),
    Goal(
        "decoded tokens per second / base",
        {
            "benchmark": "rows",
            "measure": rows.DECODE,
            "shape": SHAPE,
            "setting": "32 rows, 32 adapters",
            "variant": LORAKIT,
            "ratio_to": rows.BASE,
            **_FLOAT32,
        },
        0.85,
        0.95,
        at_least=True,
    ),
    _adapters(
        "loading the 256th adapter / the 2nd",
        "adapter 256",
        1.00,
        measure=switching.LOAD,
        ratio_to="adapter 2",
    ),
    _adapters("switching", "256 adapters", 1e-3, measure=switching.SWITCH),
    *_QUANTIZED,
    *_PLANS,
    *_LARGE_DATA,
    Goal(
        f"{search_memory.AT_ONCE}: memory / {search_memory.BOUND}",
        {
            "benchmark": "search_memory",
            "measure": search_memory.PEAK_SHARED,
            "shape": "llama-300m",
            "setting": "16 rows",
            "variant": search_memory.AT_ONCE,
            "ratio_to": search_memory.BOUND,
            **_FLOAT32,
        },
        1.00,
    ),
    *_MAGNITUDES,
    *_PREFERENCES,
    *_FROZEN_PARTS,
    *predict.GOALS,
    *together.GOALS,
    *_QUALITY,
    *_SERVED,
)


def verdict(goal: Goal, device_rows: Sequence[Row], device: str) -> Verdict:
    """Judge a goal by the rows of one device."""
    row = newest(device_rows, **goal.where)
    reached = None if row is None else row.ratio if "ratio_to" in goal.where else row.p50
    if reached is None:
        return Verdict(None, None, f"{NOT_MEASURED}{_why_not(goal, device_rows, device)}")
    if not _reaches(goal, reached, goal.must):
        return Verdict(row, reached, "missed")
    aimed = goal.aim is not None and _reaches(goal, reached, goal.aim)
    return Verdict(row, reached, "met, with the aim" if aimed else "met")


def _reaches(goal: Goal, reached: float, target: float) -> bool:
    return reached >= target if goal.at_least else reached <= target


def _why_not(goal: Goal, device_rows: Sequence[Row], device: str) -> str:
    """Say what is missing: the instructions, the variant, what it is compared with, or all."""
    if goal.where["dtype"] == "bfloat16" and NO_BF16 in device:
        return NO_BF16
    about = {
        name: value for name, value in goal.where.items() if name not in ("variant", "ratio_to")
    }
    beside = matching(device_rows, **about)
    if not beside:
        return f"no row of benchmarks.{goal.where['benchmark']}"
    missing = "variant"
    if matching(beside, variant=goal.where["variant"]):
        missing = "ratio_to"
    return f"no row of {goal.where[missing]}"

"""Rows of the benchmarks of serving with invented numbers, for tests of the page."""

from collections.abc import Callable

from benchmarks import serving, serving_clients, serving_mixed, serving_steps
from benchmarks.results import Row
from benchmarks.variants import LORAKIT


def serving_rows(make: Callable[..., list[Row]]) -> list[Row]:
    """An engine that is half as quick again as static batches."""
    who, rate = ("serving", "llama-69m"), {"unit": "tokens/s"}
    steps = {serving_steps.BASE: 600.0}
    for count, share in ((1, 0.95), (serving.ROWS, 0.86)):
        for dtype in serving_steps.FACTOR_DTYPES:
            steps[serving_steps.adapters_variant(count, dtype)] = 600.0 * share
    mixed = {serving_mixed.BEST_STATIC: 200.0, serving_mixed.CONTINUOUS: 100.0}
    mixed |= {serving_mixed.engine_variant(count): 300.0 for count in (0, 32)}
    first = {serving.concurrent_variant(serving.CONCURRENT_FOR_FIRST): 0.15, serving.IDLE: 0.1}
    pauses = {serving_steps.WITH_LOAD: 0.05, serving_steps.WITHOUT_LOAD: 0.04}
    made = []
    for measure, setting, values, reference, common in (
        (serving_steps.DECODE, f"{serving.ROWS} rows", steps, serving_steps.BASE, rate),
        (serving_mixed.MIXED, "32 requests", mixed, serving_mixed.BEST_STATIC, rate),
        (serving.FIRST_TOKEN, serving.FIRST_TOKEN_SETTING, first, serving.IDLE, {}),
        (serving_steps.PAUSE, serving_steps.RUNNING_SETTING, pauses, "without", {}),
        (serving_steps.DELAY, "8 running", {LORAKIT: 0.5}, "", {"unit": "steps"}),
    ):
        named = (who[0], measure, who[1])
        made += make(*named, values, reference, setting=setting, **common)
    loops = {serving.concurrent_setting(n, 32): serving.CLOSED for n in serving.CONCURRENT}
    loops |= {serving.open_setting(share, 32): serving.OPEN for share in serving.SHARES}
    for setting, loop in loops.items():
        for measure, value in ((serving.THROUGHPUT, 500.0), (serving.FIRST.format(95), 0.1)):
            unit = "s" if value < 1 else "tokens/s"
            made += make(who[0], measure, who[1], {loop: value}, setting=setting, unit=unit)
    for measure, value in ((serving_clients.WRONG, 0.0), (serving_clients.GROWTH, 0.5)):
        where = {"setting": serving_clients.clients_setting(1000), "unit": "%", "r": 4}
        made += make(who[0], measure, serving_clients.SHAPE, {LORAKIT: value}, **where)
    return made

"""A server's engine under load: tokens per second, time to the first token and between tokens.

Requests have mixed lengths. They are answered by the engine with 0, 1, 4 and 32 adapters, by
`generate` in static batches, by transformers' continuous batching, and by PEFT one at a time.

    python -m benchmarks.serving                                 # all of it, some minutes
    python -m benchmarks.serving --stress 2000                   # compares every answer
    python -m benchmarks.serving --clients 1000 --seconds 120    # a server on loopback
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from statistics import mean
from typing import Any

import torch

from benchmarks.load_generator import NEW_TOKENS, Load, closed_loop, mixed_work, open_loop
from benchmarks.models import Shape, build_model
from benchmarks.options import Options, options_of, options_parser
from benchmarks.results import Row, row
from benchmarks.serving_engines import engine_of
from benchmarks.serving_mixed import adapter_names, measure_mixed
from benchmarks.serving_steps import measure_decoding, measure_loads, with_adapters
from benchmarks.step import row_fields

NAME = "serving"
FIRST_TOKEN = "first token, p95"
FIRST_TOKEN_SETTING = "mixed lengths"
IDLE = "idle"
CLOSED, OPEN = "closed loop", "open loop"
PARTS = ("decode", "load", "first", "mixed", "loops")
"""What is measured: steps, loads of adapters, first tokens, mixed lengths, both loops."""
PERCENTILES = (50, 95, 99)
THROUGHPUT, IN_FLIGHT = "tokens", "requests in flight"
FIRST, BETWEEN = "first token, p{}", "between tokens, p{}"
ROWS = 32
CONCURRENT = (1, 4, 16, 32)
ADAPTERS = (0, 1, 4, 32)
CONCURRENT_FOR_FIRST = 8
SHARES = (0.5, 0.8)
"""Tokens that an open loop asks for, as shares of what the base gives with all rows."""
_SECONDS_OF_A_LOAD = 8.0


def concurrent_variant(clients: int) -> str:
    """Return what rows call a server that answers so many requests at a time."""
    return f"{clients} concurrent"


def concurrent_setting(clients: int, adapters: int) -> str:
    """Return what rows call a closed loop."""
    return f"{clients} concurrent, {adapters} adapters"


def open_setting(share: float, adapters: int) -> str:
    """Return what rows call an open loop."""
    return f"{share:.0%} of capacity, {adapters} adapters"


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    parser = options_parser(NAME, __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default all")
    parser.add_argument("--stress", type=int, metavar="REQUESTS", help="compare every answer")
    parser.add_argument("--clients", type=int, help="load a server on loopback with clients")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long; default 120")
    found = parser.parse_args(arguments)
    options = options_of(parser, found)
    if found.stress:
        _run_stress(found.stress)
        return []
    if found.clients:
        from benchmarks.serving_clients import measure_clients

        return measure_clients(options, found.clients, found.seconds)
    if options.on_cuda:
        print("  not run: the figures are those of a CPU", flush=True)
        return []
    rows = []
    for shape in options.shapes_or():
        print(f"{shape.name}, torch.float32", flush=True)
        rows += measure(options, shape, found.parts)
    return rows


def _run_stress(requests: int) -> None:
    from benchmarks.serving_stress import StressPlan, stress

    report = stress(StressPlan(requests=requests))
    print(report)
    if report.differences:
        sys.exit("\n".join(report.differences))


def measure(options: Options, shape: Shape, parts: Sequence[str] = PARTS) -> list[Row]:
    """Measure one shape."""
    quick = options.quick
    base: Any = build_model(shape).eval()
    common = row_fields(NAME, shape, torch.float32, 0.0, options.r or 8)
    rows = []
    if "decode" in parts:
        rows += measure_decoding(options, shape, base, common, 8 if quick else ROWS)
    if "load" in parts:
        rows += measure_loads(options, shape, base, common)
    if "first" in parts:
        rows += _measure_first_token(options, shape, base, common)
    adapters = (0, 1) if quick else ADAPTERS
    if "mixed" in parts or "loops" in parts:
        adapted = with_adapters(base, shape, max(adapters), common["r"])
        if "mixed" in parts:
            rows += measure_mixed(options, shape, base, adapted, max(adapters), common)
        if "loops" in parts:
            rows += _measure_loops(options, shape, base, adapted, adapters, common)
    return rows


# ---- the first token ----


def _measure_first_token(
    options: Options, shape: Shape, base: Any, common: Mapping[str, Any]
) -> list[Row]:
    """Measure the time to the first token while others are answered, and on an idle server."""
    clients = CONCURRENT_FOR_FIRST
    work = mixed_work(shape.vocabulary, (2 if options.quick else 5) * clients)
    short = [replace(one, new_tokens=2) for one in work[: 2 * clients]]
    values: dict[str, list[float]] = {concurrent_variant(clients): [], IDLE: []}
    with engine_of(base) as engine:
        for number in range(options.rounds + 1):
            loaded = closed_loop(engine, work, clients).without_first(clients)
            idle = closed_loop(engine, short, 1)
            if number:  # the first round warms up
                values[concurrent_variant(clients)].append(loaded.first_token_s(95))
                values[IDLE].append(idle.first_token_s(95))
    fields = {**common, "setting": FIRST_TOKEN_SETTING, "measure": FIRST_TOKEN, "unit": "s"}
    return options.keep(options.compared(values, (IDLE,), **fields))


# ---- closed and open loops ----


def _measure_loops(
    options: Options,
    shape: Shape,
    base: Any,
    adapted: Any,
    adapters: Sequence[int],
    common: Mapping[str, Any],
) -> list[Row]:
    """Measure requests of which so many are under way, and some that arrive at random moments."""
    quick = options.quick
    concurrent = (2,) if quick else CONCURRENT
    capacity = 0.0
    rows = []
    with ExitStack() as stack:
        plain = stack.enter_context(engine_of(base))
        carrying = stack.enter_context(engine_of(adapted))
        for clients in concurrent:
            for count in adapters:
                requests = 6 if quick else 2 * clients + 10
                work = mixed_work(shape.vocabulary, requests, adapter_names(count), seed=2)
                load = closed_loop(carrying if count else plain, work, clients)
                if not count:
                    capacity = max(capacity, load.steady_tokens_per_s)
                rows += options.keep(
                    _load_rows(
                        options,
                        load.without_first(clients),
                        load.steady_tokens_per_s,
                        {**common, "setting": concurrent_setting(clients, count)},
                        CLOSED,
                    )
                )
        for share in SHARES:
            for count in (adapters[0], adapters[-1]):
                tokens = capacity * (0.1 if quick else _SECONDS_OF_A_LOAD) * share
                requests = max(4, round(tokens / mean(NEW_TOKENS)))
                work = mixed_work(shape.vocabulary, requests, adapter_names(count), seed=2)
                rate = share * capacity / mean(NEW_TOKENS)
                load = open_loop(carrying if count else plain, work, rate)
                fields = {**common, "setting": open_setting(share, count)}
                rows += options.keep(_load_rows(options, load, load.tokens_per_s, fields, OPEN))
    return rows


def _load_rows(
    options: Options, load: Load, tokens_per_s: float, fields: Mapping[str, Any], loop: str
) -> list[Row]:
    """Return the rows of one loop; its percentiles are over all its requests or tokens."""
    values = {
        (THROUGHPUT, "tokens/s"): tokens_per_s,
        **({(IN_FLIGHT, "requests"): load.mean_in_flight} if loop == OPEN else {}),
        **{(FIRST.format(p), "s"): load.first_token_s(p) for p in PERCENTILES},
        **{(BETWEEN.format(p), "s"): load.between_tokens_s(p) for p in PERCENTILES},
    }
    return [
        row(options.origin, [value], measure=measure, unit=unit, variant=loop, **fields)
        for (measure, unit), value in values.items()
    ]


if __name__ == "__main__":
    main()

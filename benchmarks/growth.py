"""How a step grows with the number of tokens, the rank and the depth of the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.measure import Stopwatch, interleaved
from benchmarks.memory import saved_for_backward
from benchmarks.models import Shape, make_batch, shape_named
from benchmarks.options import Options, parse
from benchmarks.parity import check_parity
from benchmarks.results import Row, compared
from benchmarks.step import FORWARD_BACKWARD, REFERENCES, SAVED
from benchmarks.variants import FULL, LIMIT, LORAKIT, LORAKIT_MLP, PEFT, Variant, build_variants

VARIANTS = (LIMIT, FULL, LORAKIT, LORAKIT_MLP, PEFT)
TOKENS = (128, 256, 512, 1024, 2048, 4096)
RANKS = (1, 4, 16, 64, 128)
DEPTHS = (2, 4, 8, 16)
_LENGTH = 256
_QUICK = ((16, 64), (1, 4), (1, 2))


@dataclass(frozen=True)
class Point:
    """One place on one axis: the axis, the value there, the shape and the rank."""

    axis: str
    value: int
    shape: Shape
    r: int


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("growth", __doc__, arguments)
    dtype = options.dtype or (torch.bfloat16 if options.on_cuda else torch.float32)
    rows = []
    if options.runs(dtype):
        for point in plan(options):
            print(f"{point.axis} {point.value}, {point.shape.name}, {dtype}", flush=True)
            rows += measure(options, point, dtype)
    return rows


def plan(options: Options) -> list[Point]:
    """Return the points: along tokens and rank two blocks deep, along depth with few tokens."""
    tokens, ranks, depths = _QUICK if options.quick else (TOKENS, RANKS, DEPTHS)
    default = "tiny-llama" if options.quick else "llama-1b" if options.on_cuda else "llama-69m"
    points = []
    for shape in options.shapes or (shape_named(default),):
        short = shape.with_layers(2)
        length = 16 if options.quick else _LENGTH
        for count in tokens:
            rows = max(1, count // length)
            batch = short.with_batch(rows, count // rows)
            points.append(Point("tokens", count, batch, options.r or 8))
        points += [Point("rank", r, short.with_batch(2, length), r) for r in ranks]
        points += [
            Point("depth", n, shape.with_layers(n).with_batch(1, length), options.r or 8)
            for n in depths
        ]
    return points


def measure(options: Options, point: Point, dtype: torch.dtype) -> list[Row]:
    """Measure one point: time of forward and backward, and bytes saved between them."""
    dropout = options.dropout or 0.0
    batch = make_batch(point.shape, options.device)
    variants = build_variants(
        point.shape, dtype, names=VARIANTS, r=point.r, dropout=dropout, device=options.device
    )
    check_parity(variants, batch, dtype)

    def sample(variant: Variant, watch: Stopwatch) -> None:
        variant.module.zero_grad(set_to_none=True)
        watch.start()
        variant.loss(batch).backward()
        watch.lap(FORWARD_BACKWARD)

    samples = {
        name: lambda watch, variant=variant: sample(variant, watch)
        for name, variant in variants.items()
    }
    timings = interleaved(samples, rounds=options.rounds, warmup=2, device=options.device)
    saved = {}
    for name, variant in variants.items():
        variant.module.zero_grad(set_to_none=True)
        living = [*variant.module.parameters(), *variant.module.buffers(), *batch.values()]
        saved[name] = [saved_for_backward(lambda v=variant: v.loss(batch), living)]
    values = ((FORWARD_BACKWARD, "s", timings.by_variant(FORWARD_BACKWARD)), (SAVED, "B", saved))
    rows = []
    for measured, unit, own in values:
        rows += compared(
            options.origin,
            own,
            REFERENCES,
            benchmark="growth",
            measure=measured,
            shape=point.shape.name,
            setting=f"{point.axis} {point.value}",
            dtype=dtype,
            dropout=dropout,
            r=point.r,
            unit=unit,
        )
    return options.keep(rows)


if __name__ == "__main__":
    main()

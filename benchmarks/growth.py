"""How a step grows with the number of tokens, the rank and the depth of the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.memory import saved_for_backward
from benchmarks.models import Shape, make_batch
from benchmarks.options import Options, parse
from benchmarks.parity import check_parity
from benchmarks.results import Row
from benchmarks.step import FORWARD_BACKWARD, REFERENCES, SAVED, row_fields, step_sample
from benchmarks.variants import FULL, LIMIT, LORAKIT, LORAKIT_MLP, PEFT, build_variants

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
    dtype = options.device_dtype
    rows = []
    if options.runs(dtype):
        for point in plan(options):
            print(f"{point.axis} {point.value}, {point.shape.name}, {dtype}", flush=True)
            rows += measure(options, point, dtype)
    return rows


def plan(options: Options) -> list[Point]:
    """Return the points: along tokens and rank two blocks deep, along depth with few tokens."""
    tokens, ranks, depths = _QUICK if options.quick else (TOKENS, RANKS, DEPTHS)
    points = []
    for shape in options.shapes_or():
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
    samples = {name: step_sample(variant, None, batch) for name, variant in variants.items()}
    timings = options.timed(samples)
    saved = {}
    for name, variant in variants.items():
        variant.module.zero_grad(set_to_none=True)
        living = [*variant.module.parameters(), *variant.module.buffers(), *batch.values()]
        saved[name] = [saved_for_backward(lambda v=variant: v.loss(batch), living)]
    values = ((FORWARD_BACKWARD, "s", timings.by_variant(FORWARD_BACKWARD)), (SAVED, "B", saved))
    common = row_fields("growth", point.shape, dtype, dropout, point.r)
    common["setting"] = f"{point.axis} {point.value}"
    rows = []
    for measured, unit, numbers in values:
        rows += options.compared(numbers, REFERENCES, measure=measured, unit=unit, **common)
    return options.keep(rows)


if __name__ == "__main__":
    main()

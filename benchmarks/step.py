"""One training step: its time, what it saves for backward, and its peak of memory.

Every variant is first compared with lorakit's loss and gradients; one that differs stops the run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Sample, Stopwatch
from benchmarks.memory import peak_bytes, resident_bytes, saved_for_backward
from benchmarks.models import Shape, make_batch, shape_named
from benchmarks.options import Options, parse
from benchmarks.parity import check_parity
from benchmarks.results import Row
from benchmarks.variants import (
    COMPILED,
    EAGER,
    FULL,
    LIMIT,
    LORALIB,
    PEFT,
    PEFT_FLOAT32,
    Variant,
    build_variants,
)

FORWARD_BACKWARD = "forward+backward"
WITH_OPTIMIZER = "forward+backward+optimizer"
LAPS = (FORWARD_BACKWARD, WITH_OPTIMIZER)
SAVED = "saved for backward"
PEAK = "peak of a step"
TOTAL = "peak with weights and optimizer"
REFERENCES = (LIMIT, FULL, PEFT, LORALIB)

Column = tuple[torch.dtype, float, int]
"""dtype, dropout, r"""
COLUMNS: tuple[Column, ...] = (
    (torch.float32, 0.0, 8),
    (torch.float32, 0.05, 8),
    (torch.bfloat16, 0.0, 8),
    (torch.bfloat16, 0.05, 16),
)
OTHER_SHAPES = ("llama-300m", "bert-base", "gpt2-medium", "t5-base")
OTHER_COLUMN: Column = (torch.float32, 0.05, 8)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("step", __doc__, arguments)
    rows = []
    for shape, (dtype, dropout, r) in plan(options):
        print(f"{shape.name}, {dtype}, dropout {dropout:g}, r={r}", flush=True)
        if options.runs(dtype):
            rows += measure(options, shape, dtype, dropout, r)
    return rows


def plan(options: Options) -> list[tuple[Shape, Column]]:
    """Return the shapes and columns to measure."""
    if options.quick:
        names, others = ("tiny-llama",), ("tiny-bert", "tiny-gpt2", "tiny-t5")
    elif options.on_cuda:
        names, others = ("llama-1b",), ()
    else:
        names, others = ("llama-69m",), OTHER_SHAPES
    columns = [column for column in COLUMNS if not options.on_cuda or column[0] != torch.float32]
    pairs = [(shape_named(name), column) for name in names for column in columns]
    pairs += [(shape_named(name), OTHER_COLUMN) for name in others]
    if options.shapes:
        pairs = [(shape, column) for shape in options.shapes for column in columns]
    if (options.dtype, options.dropout, options.r) == (None, None, None):
        return pairs
    asked = {}
    for shape, (dtype, dropout, r) in pairs:
        dropout = dropout if options.dropout is None else options.dropout
        asked[shape, (options.dtype or dtype, dropout, options.r or r)] = None
    return list(asked)


def measure(
    options: Options, shape: Shape, dtype: torch.dtype, dropout: float, r: int
) -> list[Row]:
    """Measure one shape in one column."""
    batch = make_batch(shape, options.device)
    names = [*EAGER, *(COMPILED if options.on_cuda else ())]
    if dtype == torch.float32:
        names.remove(PEFT_FLOAT32)
    variants = build_variants(
        shape, dtype, names=names, r=r, dropout=dropout, device=options.device
    )
    check_parity(variants, batch, dtype)
    optimizers = {name: optimizer_of(variant) for name, variant in variants.items()}
    samples = {
        name: step_sample(variant, optimizers[name], batch) for name, variant in variants.items()
    }
    common = row_fields("step", shape, dtype, dropout, r)
    rows = options.compared_laps(samples, LAPS, REFERENCES, **common)
    for counted, counts in _bytes(variants, optimizers, batch, options.device).items():
        values = {name: [count] for name, count in counts.items()}
        rows += options.compared(values, REFERENCES, measure=counted, unit="B", **common)
    return options.keep(rows)


def row_fields(
    benchmark: str, shape: Shape, dtype: torch.dtype, dropout: float, r: int
) -> dict[str, Any]:
    """Return the fields that all rows of one shape in one column have in common."""
    return {
        "benchmark": benchmark,
        "shape": shape.name,
        "setting": f"{shape.rows} x {shape.length}",
        "dtype": dtype,
        "dropout": dropout,
        "r": r,
    }


def optimizer_of(variant: Variant) -> torch.optim.Optimizer | None:
    trained = variant.trained()
    return torch.optim.AdamW(trained, lr=1e-5, fused=True) if trained else None


def step_sample(
    variant: Variant, optimizer: torch.optim.Optimizer | None, batch: dict[str, Tensor]
) -> Sample:
    def sample(watch: Stopwatch) -> None:
        variant.module.zero_grad(set_to_none=True)
        watch.start()
        variant.loss(batch).backward()
        watch.lap(FORWARD_BACKWARD)
        if optimizer:
            optimizer.step()
        watch.lap(WITH_OPTIMIZER)

    return sample


def _bytes(
    variants: Mapping[str, Variant],
    optimizers: Mapping[str, torch.optim.Optimizer | None],
    batch: dict[str, Tensor],
    device: str,
) -> dict[str, dict[str, float]]:
    """Return bytes by measure and variant, in train mode, with gradients and optimizer state."""
    counts: dict[str, dict[str, float]] = {SAVED: {}, PEAK: {}, TOTAL: {}}
    for name, variant in variants.items():
        variant.module.zero_grad(set_to_none=True)
        if name not in COMPILED:  # hooks on saved tensors would recompile the model
            living = [*variant.module.parameters(), *variant.module.buffers(), *batch.values()]
            counts[SAVED][name] = saved_for_backward(lambda v=variant: v.loss(batch), living)
        sample = step_sample(variant, optimizers[name], batch)
        counts[PEAK][name] = peak_bytes(lambda s=sample: s(Stopwatch(device)), device)
        resident = resident_bytes(variant.module, optimizers[name])
        counts[TOTAL][name] = resident + counts[PEAK][name]
        variant.module.zero_grad(set_to_none=True)
    return counts


if __name__ == "__main__":
    main()

"""Rows of the benchmarks of single operations, with made-up numbers."""

from collections.abc import Callable

import torch
from benchmarks import dropout_ways, output_loss, thin_products
from benchmarks.results import Row
from benchmarks.step import FORWARD_BACKWARD, PEAK

Make = Callable[..., list[Row]]


def dropout_rows(make: Make) -> list[Row]:
    """Return the rows of benchmarks.dropout_ways."""
    values = {dropout_ways.TORCH: 0.01, dropout_ways.KERNEL: 0.001}
    where = ("dropout_ways", dropout_ways.DROP, "1024 x 2048")
    made = []
    for dtype in (torch.float32, torch.bfloat16):
        made += make(*where, values, dropout_ways.TORCH, dtype=dtype, dropout=0.05)
    return made


def thin_rows(make: Make) -> list[Row]:
    """Return the rows of benchmarks.thin_products."""
    made = []
    for r in thin_products.RANKS:
        for inside, out in thin_products.LAYERS:
            values = {thin_products.IN_C: 1e-4 * r, thin_products.IN_TORCH: 1e-3}
            where = ("thin_products", "down", f"{inside} to {out}")
            setting = f"tokens {thin_products.TOKENS}"
            made += make(*where, values, thin_products.IN_TORCH, setting=setting, r=r)
    return made


def output_loss_rows(make: Make) -> list[Row]:
    """Return the rows of benchmarks.output_loss."""
    references = (output_loss.IN_CHUNKS, output_loss.LOSS_IN_TORCH)
    paces = dict(zip(output_loss.VARIANTS, (0.4, 0.5, 0.8, 1.0), strict=True))
    made = []
    for dtype in output_loss.DTYPES:
        for features, tokens in output_loss.SIZES:
            shape = f"{features} to {output_loss.VOCABULARY}"
            common = {"setting": f"{tokens} tokens", "dtype": dtype}
            made += make("output_loss", FORWARD_BACKWARD, shape, paces, *references, **common)
            sizes = {name: pace * 2**30 for name, pace in paces.items()}
            made += make("output_loss", PEAK, shape, sizes, *references, unit="B", **common)
    return made

"""The four products of the low-rank path, in C and in torch, by rank: where the one is quicker.

`lorakit.ops.skinny` runs the C up to the ranks that this shows.
"""

from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.measure import TIME, Sample, Stopwatch
from benchmarks.options import Options, parse
from benchmarks.parity import check_tensors
from benchmarks.results import Row
from lorakit.ops import skinny
from lorakit.ops.dropout import kernels_for
from lorakit.ops.native import compiled_library, cpu_kernels

IN_C = "C"
IN_TORCH = "torch"
LAYERS = ((512, 512), (512, 2048), (2048, 512))
TOKENS = 1024
RANKS = (2, 4, 8, 12, 16, 24, 32, 64, 128)
_SEED = torch.tensor(20_231_107)
_REPEATS = 5


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("thin_products", __doc__, arguments)
    if options.on_cuda or cpu_kernels.load() is None:
        print(
            f"  not run: there is no C here ({compiled_library.unavailable() or 'a GPU'})",
            flush=True,
        )
        return []
    layers = ((32, 64),) if options.quick else LAYERS
    ranks = (2, 16) if options.quick else (options.r,) if options.r else RANKS
    rows = []
    for in_features, out_features in layers:
        print(f"linear {in_features} to {out_features}, {options.dtype or torch.float32}")
        for r in ranks:
            rows += measure(options, in_features, out_features, r)
    return rows


def measure(options: Options, in_features: int, out_features: int, r: int) -> list[Row]:
    """Measure every product of one layer at one rank."""
    dtype = options.dtype or torch.float32
    tokens = 64 if options.quick else TOKENS
    common: dict[str, Any] = {"benchmark": "thin_products", "dtype": dtype, "r": r}
    common |= {"shape": f"{in_features} to {out_features}", "setting": f"tokens {tokens}"}
    rows = []
    for dropout in (0.0, 0.05):
        for name, run in _products(in_features, out_features, r, tokens, dropout, dtype).items():
            with _in_c(True):
                expected = run()
            with _in_c(False):
                check_tensors(IN_TORCH, name, run(), expected, dtype)
            repeats = 1 if options.quick else _REPEATS
            samples = {way: _sample(run, way == IN_C, repeats) for way in (IN_C, IN_TORCH)}
            fields = {**common, "measure": name, "dropout": dropout, "unit": "s"}
            values = options.timed(samples).by_variant()
            rows += options.compared(values, (IN_TORCH,), **fields)
    return options.keep(rows)


def _products(
    in_features: int, out_features: int, r: int, tokens: int, dropout: float, dtype: torch.dtype
) -> dict[str, Callable[[], Tensor]]:
    """Return what to run by name; products that read no dropped input are there without dropout."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(dtype)

    x, h = draw(tokens, in_features), draw(tokens, out_features)
    A, B = draw(r, in_features), draw(out_features, r)
    u = skinny.down(x, A).float()
    grad_u, grad_x = torch.empty_like(u), torch.zeros_like(x)
    seed = _SEED if dropout else None

    def up() -> Tensor:
        skinny.up_(h, u, B, 0.0)  # adds nothing, so that it can be run again and again
        return h

    def up_backward() -> Tensor:
        gradient: Any = skinny.up_backward(h, u, B, 0.5, grad_u, True)
        return gradient

    def down_backward() -> Tensor:
        gradient: Any = skinny.down_backward_(x, A, u, dropout, seed, grad_x, True)
        return gradient

    found: dict[str, Callable[[], Tensor]] = {
        "down": lambda: skinny.down(x, A, dropout, seed),
        "down_backward": down_backward,
    }
    if not dropout:
        found |= {"up": up, "up_backward": up_backward}
    return found


def _in_c(wanted: bool) -> Any:
    """Return a context in which all products run in C, or all in torch."""

    def chosen(x: Tensor, product: str, width: int, drops: bool = False) -> Any:
        return kernels_for(x, drops=drops) if wanted else None

    return mock.patch.object(skinny, "_kernels", chosen)


def _sample(run: Callable[[], Tensor], in_c: bool, repeats: int) -> Sample:
    def sample(watch: Stopwatch) -> None:
        with _in_c(in_c):
            watch.start()
            for _ in range(repeats):
                run()
            watch.lap(TIME)

    return sample


if __name__ == "__main__":
    main()

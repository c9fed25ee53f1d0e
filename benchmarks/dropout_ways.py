"""Ways of dropping elements of an activation of 1024 tokens by 2048.

A way whose share of dropped elements or whose mean is not what it should be stops the run.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import repeated
from benchmarks.options import Options, parse
from benchmarks.parity import ParityError
from benchmarks.results import Row
from lorakit.ops import apply_keep_mask, draw_seed, keep_mask, skinny
from lorakit.ops.native import compiled_library

TORCH = "torch.nn.functional.dropout"
RANDOM_LANES = "16-bit lanes of drawn 64-bit words"
HASH_EAGER = "hash of the position, 64 bits, torch operations"
HASH_COMPILED = "hash of the position, 64 bits, compiled by inductor"
SHORT_HASH_COMPILED = "hash of the position, 32 bits, compiled by inductor"
KERNEL = "hash of the position, 64 bits, lorakit's kernel"
DROP = "drop"
PROJECT = "drop and project"
"""u = drop(x) Aᵀ, what the low-rank path needs."""
_PROJECT_ALONE = "projection alone, torch"
_PROJECT_TORCH = "torch dropout, then projection"
_PROJECT_KERNEL_ALONE = "projection alone, lorakit"
_PROJECT_KERNEL = "projection with the mask inside, lorakit"

_LANES = 1 << 16
_REPEATS = 5
_ENOUGH_ELEMENTS = 1 << 16
_ERROR = 0.005

Way = Callable[[Tensor, float], Tensor]


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("dropout_ways", __doc__, arguments)
    dtypes = (options.dtype,) if options.dtype else (torch.float32, torch.bfloat16)
    rows = []
    for dtype in dtypes:
        tokens, width = (64, 32) if options.quick else (1024, 2048)
        print(f"activation {tokens} x {width}, {dtype}", flush=True)
        rows += measure(options, tokens, width, dtype)
    return rows


def measure(options: Options, tokens: int, width: int, dtype: torch.dtype) -> list[Row]:
    """Measure one activation: dropping alone, and dropping for the low-rank projection."""
    p, r = options.dropout or 0.05, options.r or 8
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=generator).to(options.device, dtype)
    A = torch.randn(r, width, generator=generator).to(options.device, dtype)
    found = ways(options, x)
    for name, way in found.items():
        check_way(name, way, x, p)
    drops = {name: repeated(lambda w=way: w(x, p), _REPEATS) for name, way in found.items()}
    projections = {name: repeated(work, _REPEATS) for name, work in _projections(x, A, p).items()}
    common: dict[str, Any] = {"benchmark": "dropout_ways", "shape": f"{tokens} x {width}"}
    common |= {"dtype": dtype, "dropout": p, "r": r}
    rows = []
    for measured, samples, reference in (
        (DROP, drops, TORCH),
        (PROJECT, projections, _PROJECT_ALONE),
    ):
        values = options.timed(samples).by_variant()
        rows += options.compared(values, (reference,), measure=measured, unit="s", **common)
    return options.keep(rows)


def ways(options: Options, x: Tensor) -> dict[str, Way]:
    """Return the ways there are here; compiling is left out of a quick run."""
    found: dict[str, Way] = {
        TORCH: lambda x, p: F.dropout(x, p),
        RANDOM_LANES: drop_by_random_lanes,
        HASH_EAGER: _drop_by_hash_eagerly,
    }
    if options.quick:
        print("  without the compiled ways: compiling takes longer than a quick run", flush=True)
    else:
        long, short = (
            torch.compile(way, dynamic=True) for way in (apply_keep_mask, drop_by_short_hash)
        )
        found[HASH_COMPILED] = lambda x, p: long(x, p, draw_seed())
        found[SHORT_HASH_COMPILED] = lambda x, p: short(x, p, draw_seed())
    if skinny.kernels_for(x) is None:
        reason = compiled_library.unavailable() or f"it does not take {x.dtype} on {x.device}"
        print(f"  without lorakit's kernel: {reason}", flush=True)
    else:
        found[KERNEL] = lambda x, p: apply_keep_mask(x, p, draw_seed())
    return found


def drop_by_random_lanes(x: Tensor, p: float) -> Tensor:
    """Drop by 16-bit lanes of fresh 64-bit words from torch's generator: four elements a word."""
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    # From the smallest number on: without bounds torch draws 63 bits, and one lane is biased.
    words.random_(torch.iinfo(torch.int64).min, None)
    return _keep(x, words.view(torch.int16)[: x.numel()].view(x.shape), p)


def _drop_by_hash_eagerly(x: Tensor, p: float) -> Tensor:
    mask = keep_mask(x.shape, p, draw_seed(), x.device)
    return torch.where(mask, x, 0).mul_(1.0 / (1.0 - p))


def drop_by_short_hash(x: Tensor, p: float, seed: Tensor) -> Tensor:
    """Drop by the low 16 bits of a 32-bit hash of the position: three xor-shift-multiply rounds.

    Source: the rounds of "triple32", C. Wellons, hash-prospector; public domain.
    """
    z = torch.arange(x.numel(), dtype=torch.int32, device=x.device) + seed.to(x.device, torch.int32)
    for shift, multiplier in ((17, -312814405), (11, -1404298415), (15, 830770091)):
        z = (z ^ ((z >> shift) & ((1 << (32 - shift)) - 1))) * multiplier
    z = z ^ ((z >> 14) & ((1 << 18) - 1))
    return _keep(x, z.to(torch.int16).view(x.shape), p)


def _keep(x: Tensor, lanes: Tensor, p: float) -> Tensor:
    threshold = round(p * _LANES) - _LANES // 2
    return torch.where(lanes >= threshold, x, 0).mul_(1.0 / (1.0 - p))


def check_way(name: str, way: Way, x: Tensor, p: float) -> None:
    """Check that a way drops the share it should and keeps the mean.

    Raises:
        ParityError: It does not.
    """
    ones = torch.ones_like(x)
    passes = max(1, _ENOUGH_ELEMENTS // x.numel())
    dropped = torch.stack([way(ones, p).float() for _ in range(passes)])
    share, mean = (dropped == 0).float().mean().item(), dropped.mean().item()
    if abs(share - p) > _ERROR or abs(mean - 1) > 2 * _ERROR:
        raise ParityError(
            f"{name} drops {share:.4f} of the elements and has a mean of {mean:.4f}, expected "
            f"{p:.4f} and 1."
        )


def _projections(x: Tensor, A: Tensor, p: float) -> dict[str, Callable[[], Tensor]]:
    work: dict[str, Callable[[], Tensor]] = {
        _PROJECT_ALONE: lambda: x @ A.t(),
        _PROJECT_TORCH: lambda: F.dropout(x, p) @ A.t(),
    }
    if skinny.kernels_for(x) is not None:
        work[_PROJECT_KERNEL_ALONE] = lambda: skinny.down(x, A)
        work[_PROJECT_KERNEL] = lambda: skinny.down(x, A, p, draw_seed())
    return work


if __name__ == "__main__":
    main()

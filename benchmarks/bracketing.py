"""Where to put the brackets: x W0ᵀ + s (x Aᵀ) Bᵀ, or x (W0 + s B A)ᵀ with the sum formed first.

Per token the first costs r (in + out) products more than the base, the second none, but forming
the sum costs r in out once. So on paper they meet at in·out / (in + out) tokens, whatever the
rank (RunLoRA, Cherniuk et al. 2023, arXiv:2312.03415); here it is measured where they meet. Both
train A and B alone, and hand gradients down.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from benchmarks.measure import Sample, Stopwatch
from benchmarks.options import Options, parse
from benchmarks.parity import check_tensors
from benchmarks.results import Row
from lorakit.ops import LowRankTerm, linear_group, low_rank_linear

FACTORED = "factored: x W0ᵀ + s (x Aᵀ) Bᵀ"
FORMED = "formed: x (W0 + s B A)ᵀ"
BASE = "base: x W0ᵀ"
FORWARD = "forward"
FORWARD_BACKWARD = "forward+backward"
LAYERS = ((768, 768), (768, 2048), (2048, 768))
TOKENS = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
_SCALING = 2.0
_FEW_TOKENS = 512


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("bracketing", __doc__, arguments)
    dtype = options.dtype or torch.float32
    layers = ((32, 64),) if options.quick else LAYERS
    tokens = (8, 64) if options.quick else TOKENS
    rows = []
    if options.runs(dtype):
        for in_features, out_features in layers:
            print(f"linear {in_features} to {out_features}, {dtype}", flush=True)
            for count in tokens:
                rows += measure(options, in_features, out_features, count, dtype)
    return rows


def crossover_tokens(in_features: int, out_features: int) -> float:
    """Return the tokens at which both take the same number of products, on paper.

    >>> crossover_tokens(768, 768)
    384.0
    """
    return in_features * out_features / (in_features + out_features)


def measure(
    options: Options, in_features: int, out_features: int, tokens: int, dtype: torch.dtype
) -> list[Row]:
    """Measure one layer with one number of tokens."""
    r = options.r or 8
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int, spread: float = 1.0) -> Tensor:
        return (torch.randn(sizes, generator=generator) * spread).to(options.device, dtype)

    x = draw(tokens, in_features).requires_grad_(True)
    W0 = draw(out_features, in_features, spread=in_features**-0.5)
    A = draw(r, in_features, spread=in_features**-0.5).requires_grad_(True)
    B = draw(out_features, r, spread=0.1).requires_grad_(True)
    g = draw(tokens, out_features)
    ways: dict[str, Callable[[], Tensor]] = {
        BASE: lambda: torch.nn.functional.linear(x, W0),
        FACTORED: lambda: low_rank_linear(x, W0, None, [LowRankTerm(A, B, _SCALING)]),
        FORMED: lambda: _Formed.apply(x, W0, A, B),  # type: ignore[return-value]
    }
    # lorakit's node would change the brackets by itself.
    with mock.patch.object(linear_group, "MERGE_CROSSOVER", math.inf):
        _check({name: ways[name] for name in (FACTORED, FORMED)}, (x, A, B), g, dtype)
        times = 1 if tokens >= _FEW_TOKENS else max(1, _FEW_TOKENS // tokens)
        samples = {name: _sample(way, (x, A, B), g, times) for name, way in ways.items()}
        common: dict[str, Any] = {"benchmark": "bracketing", "dtype": dtype, "r": r}
        common |= {"shape": f"{in_features} to {out_features}", "setting": f"tokens {tokens}"}
        laps = (FORWARD, FORWARD_BACKWARD)
        return options.keep(options.compared_laps(samples, laps, (FORMED,), **common))


class _Formed(torch.autograd.Function):
    """h = x W'ᵀ with W' = W0 + s B A formed in forward and kept for backward.

    Given g = dL/dh, dL/dx = g W', dL/dB = s gᵀ (x Aᵀ) and dL/dA = (s g B)ᵀ x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, W0: Tensor, A: Tensor, B: Tensor) -> Tensor:
        W = torch.addmm(W0, B, A, alpha=_SCALING)
        ctx.save_for_backward(x, W, A, B)
        return x @ W.t()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, W, A, B = ctx.saved_tensors
        grad_B = ((x @ A.t()).t() @ g).mul_(_SCALING).t()
        grad_A = (g @ B).mul_(_SCALING).t() @ x
        return g @ W, None, grad_A, grad_B


def _check(
    ways: dict[str, Callable[[], Tensor]], leaves: tuple[Tensor, ...], g: Tensor, dtype: torch.dtype
) -> None:
    results = {}
    for name, way in ways.items():
        h = way()
        gradients = torch.autograd.grad(h, leaves, g)
        results[name] = dict(zip(("h", "dx", "dA", "dB"), (h.detach(), *gradients), strict=True))
    for quantity, expected in results[FACTORED].items():
        check_tensors(FORMED, quantity, results[FORMED][quantity], expected, dtype)


def _sample(way: Callable[[], Tensor], leaves: tuple[Tensor, ...], g: Tensor, times: int) -> Sample:
    def sample(watch: Stopwatch) -> None:
        watch.start()
        for _ in range(times):
            way()
        watch.lap(FORWARD, times)
        watch.start()
        for _ in range(times):
            torch.autograd.grad(way(), leaves, g, allow_unused=True)
        watch.lap(FORWARD_BACKWARD, times)

    return sample


if __name__ == "__main__":
    main()

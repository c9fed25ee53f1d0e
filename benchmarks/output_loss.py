"""The loss of a language model's frozen output layer: forward, and backward to the hidden states.

In chunks of tokens as lorakit and torch compute it, and with the logits of all tokens at once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import repeated
from benchmarks.memory import peak_bytes
from benchmarks.options import Options, parse
from benchmarks.parity import check_tensors
from benchmarks.results import Row
from benchmarks.step import FORWARD_BACKWARD, PEAK
from lorakit.ops.linear_loss import linear_cross_entropy_sum, sum_over_chunks
from lorakit.ops.native import compiled_library, cross_entropy_kernel
from lorakit.training.losses.output_loss import OutputLoss
from lorakit.training.losses.token_loss import TokenLoss

LORAKIT = "lorakit"
LOSS_IN_TORCH = "lorakit, loss in torch"
"""The products of lorakit and its chunks, but the loss of the logits by torch's operations."""
IN_CHUNKS = "torch in chunks"
AT_ONCE = "all logits at once"
VARIANTS = (LORAKIT, LOSS_IN_TORCH, IN_CHUNKS, AT_ONCE)
VOCABULARY = 32_000
SIZES = ((768, 256), (768, 1024), (2048, 256))
"""Features and tokens."""
DTYPES = (torch.float32, torch.bfloat16)

LossOf = Callable[[nn.Linear, Tensor, Tensor], Tensor]
"""Function of the output layer, hidden states and targets that returns the sum of the losses."""


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    options = parse("output_loss", __doc__, arguments)
    if options.on_cuda or cross_entropy_kernel.load() is None:
        reason = compiled_library.unavailable() or "a GPU"
        print(f"  not run: there is no C here ({reason})", flush=True)
        return []
    vocabulary, sizes = (500, ((32, 64),)) if options.quick else (VOCABULARY, SIZES)
    rows = []
    for dtype in (options.dtype,) if options.dtype else DTYPES:
        for features, tokens in sizes:
            print(f"{features} to {vocabulary}, {tokens} tokens, {dtype}", flush=True)
            if options.runs(dtype):
                rows += measure(options, features, vocabulary, tokens, dtype)
    return rows


def measure(
    options: Options, features: int, vocabulary: int, tokens: int, dtype: torch.dtype
) -> list[Row]:
    """Measure one output layer with one number of tokens."""
    torch.manual_seed(0)
    head = nn.Linear(features, vocabulary, bias=False, dtype=dtype).requires_grad_(False)
    hidden = torch.randn(tokens, features).to(dtype).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,))
    ways = {
        name: partial(_loss_and_gradient, loss_of, head, hidden, targets)
        for name, loss_of in _losses(dtype).items()
    }
    expected_loss, expected = ways[AT_ONCE]()
    for name, way in ways.items():
        loss, gradient = way()
        check_tensors(name, "losses", loss, expected_loss, dtype)
        check_tensors(name, "gradients", gradient, expected, dtype)
    fields: dict[str, Any] = {"benchmark": "output_loss", "dtype": dtype}
    fields |= {"shape": f"{features} to {vocabulary}", "setting": f"{tokens} tokens"}
    seconds = options.timed({name: repeated(way, 1) for name, way in ways.items()}, warmup=1)
    peaks = {name: [peak_bytes(way)] for name, way in ways.items()}
    references = (IN_CHUNKS, LOSS_IN_TORCH)
    rows = options.compared(
        seconds.by_variant(), references, measure=FORWARD_BACKWARD, unit="s", **fields
    )
    rows += options.compared(peaks, references, measure=PEAK, unit="B", **fields)
    return options.keep(rows)


def _losses(dtype: torch.dtype) -> dict[str, LossOf]:
    """Return the ways to compute the loss, by variant."""

    def in_lorakit(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
        return OutputLoss(head, shifts=True).sum(hidden, targets, TokenLoss())

    def without_c(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
        with mock.patch.object(cross_entropy_kernel, "load", lambda: None):
            return in_lorakit(head, hidden, targets)

    def at_once(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(hidden, head.weight).float()
        return F.cross_entropy(logits, targets, reduction="sum")

    def in_chunks(head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
        # On a CPU torch's operation would convert the whole weight of 16 bits to float32.
        if dtype == torch.float32:
            return linear_cross_entropy_sum(hidden, head.weight, None, targets)
        return sum_over_chunks(partial(at_once, head), hidden, targets)

    return dict(zip(VARIANTS, (in_lorakit, without_c, in_chunks, at_once), strict=True))


def _loss_and_gradient(
    loss_of: LossOf, head: nn.Linear, hidden: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    loss = loss_of(head, hidden, targets)
    (gradient,) = torch.autograd.grad(loss, hidden)
    return loss.detach(), gradient


if __name__ == "__main__":
    main()

"""The loss of an output layer, a few tokens at a time, so that all logits never exist at once.

The sum of the loss over tokens, or the loss of each token where losses are weighed by what follows
from them.
"""

# Tensor.split has no types, and the parameters of Function.backward no names.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false, reportIncompatibleMethodOverride=false

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import LinearCrossEntropyOptions
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

CHUNK_TOKENS = 256
"""Number of tokens whose logits exist at once.

Each chunk reads the whole output weight, so small chunks are slow (on a CPU 32 tokens took three
times as long as all at once, 128 and more no longer), while the buffer stays smaller than that
weight as long as the hidden size is larger than this.
"""


def linear_cross_entropy_sum(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Tensor:
    """Compute the summed cross-entropy of a linear output layer by torch's own operation.

    Args:
        hidden: Input of the output layer, (tokens, in).
        weight: (vocabulary, in), dtype of `hidden`; it may be trained.
        bias: (vocabulary,) or None.
        targets: Token ids, (tokens,), int64; all of them count.
        chunk_tokens: Number of tokens whose logits exist at once.

    Returns: A scalar in the dtype of `hidden`, differentiable once.

    Memory: one (chunk_tokens, vocabulary) buffer; between forward and backward the gradients of
    the trained tensors, such as (tokens, in) for `hidden`.
    Source: the chunked path of `torch.nn.functional.linear_cross_entropy`. It computes the
    gradients in forward, so each product is done once, as without chunks.
    """
    options = LinearCrossEntropyOptions(batch_chunk_size=chunk_tokens, chunking_method=None)
    return F.linear_cross_entropy(
        hidden, weight, targets, linear_bias=bias, reduction="sum", options=options
    )


def sum_over_chunks(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    parameters: Sequence[Tensor] = (),
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Tensor:
    """Sum a loss over chunks of tokens; a chunk's graph is freed before the next one is built.

    For output layers that are more than one plain matrix: with updates, quantized, or with logits
    that are scaled, capped or smoothed afterwards.

    Args:
        loss_of: Function of (chunk, in) and (chunk,) that returns the loss summed over these
            tokens, a scalar. It is called once for each chunk, so it may draw random numbers.
        hidden: Input of the output layer, (tokens, in).
        targets: Token ids, (tokens,).
        parameters: The trained tensors `loss_of` depends on.
        chunk_tokens: Tokens in a chunk.

    Returns: The sum, a scalar in the dtype of `loss_of`, differentiable once.

    Memory: that of one chunk's forward and backward; between forward and backward the gradients of
    `hidden` and of the parameters.
    """
    if not torch.is_grad_enabled():
        return _sum((loss_of(h, t) for h, t in chunks(hidden, targets, chunk_tokens)), hidden)
    return _ChunkedSum.apply(loss_of, targets, chunk_tokens, hidden, *parameters)


def values_over_chunks(
    values_of: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    parameters: Sequence[Tensor] = (),
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Tensor:
    """Compute a value of each token in chunks, such as its log-probability.

    Args:
        values_of: Function of (chunk, in) and (chunk,) that returns (chunk,); the value of a token
            depends on its own input alone. If there are parameters, backward calls it once more,
            with the same random numbers.
        hidden: Input of the output layer, (tokens, in).
        targets: Token ids, (tokens,).
        parameters: The trained tensors `values_of` depends on.
        chunk_tokens: Tokens in a chunk.

    Returns: (tokens,), differentiable once.

    Memory: that of one chunk's forward and backward; between forward and backward the gradients of
    `hidden`, or `hidden` itself if there are parameters.
    """
    if not len(hidden):
        return values_of(hidden, targets)
    if not torch.is_grad_enabled():
        return torch.cat([values_of(h, t) for h, t in chunks(hidden, targets, chunk_tokens)])
    if not parameters:
        return _ChunkedValues.apply(values_of, targets, chunk_tokens, hidden)
    # The gradient of a parameter is a sum weighted by what comes later, so it must wait for that.
    values: list[Any] = [
        checkpoint(values_of, h, t, use_reentrant=False)
        for h, t in chunks(hidden, targets, chunk_tokens)
    ]
    return torch.cat(values)


def values_and_gradients(
    values_of: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    *,
    chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Tensor, Tensor]:
    """Compute a value v_t of each token in chunks, and dv_t/dh_t, without a graph.

    Args:
        values_of: See `values_over_chunks`; nothing that it depends on is trained.
        hidden: Input of the output layer, (tokens, in).
        targets: Token ids, (tokens,).
        chunk_tokens: Tokens in a chunk.

    Returns: (tokens,) and (tokens, in).
    """
    leaf = hidden.detach().requires_grad_()
    with torch.enable_grad():
        values = values_over_chunks(values_of, leaf, targets, chunk_tokens=chunk_tokens)
        (gradients,) = torch.autograd.grad(values, leaf, torch.ones_like(values))
    return values.detach(), gradients


def known_values(hidden: Tensor, values: Tensor, gradients: Tensor) -> Tensor:
    """Return values that are computed already, with their gradients.

    Args:
        hidden: What they are values of, (tokens, in), with its graph.
        values: (tokens,).
        gradients: dv_t/dh_t, (tokens, in).
    """
    return _KnownValues.apply(hidden, values, gradients)


class _KnownValues(torch.autograd.Function):
    """v_t with dLoss/dh_t = dLoss/dv_t · dv_t/dh_t."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, values: Tensor, gradients: Tensor) -> Tensor:
        ctx.save_for_backward(gradients)
        return values.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Any, ...]:
        (gradients,) = ctx.saved_tensors
        return (gradients * grad_values[:, None]).to(gradients.dtype), None, None


class _ChunkedValues(torch.autograd.Function):
    """The value v_t of each token, and in the same pass its gradient.

    v_t depends on h_t alone, so d(Σ_t v_t)/dh_t = dv_t/dh_t, and for g = dLoss/dv, (tokens,):

        dLoss/dh_t = g_t · dv_t/dh_t                            (tokens, in)
    """

    @staticmethod
    def forward(
        ctx: Any,
        values_of: Callable[[Tensor, Tensor], Tensor],
        targets: Tensor,
        chunk_tokens: int,
        hidden: Tensor,
    ) -> Tensor:
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        for chunk, chunk_targets in chunks(hidden, targets, chunk_tokens):
            with torch.enable_grad():
                leaf = chunk.detach().requires_grad_(ctx.needs_input_grad[3])
                found = values_of(leaf, chunk_targets)
            if ctx.needs_input_grad[3]:
                gradients += torch.autograd.grad(found, leaf, torch.ones_like(found))
            values.append(found.detach())
        ctx.save_for_backward(torch.cat(gradients) if gradients else None)
        return torch.cat(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_values: Tensor) -> tuple[Any, ...]:
        (gradients,) = ctx.saved_tensors
        scaled = None
        if gradients is not None:
            scaled = (gradients * grad_values[:, None]).to(gradients.dtype)
        return None, None, None, scaled


class _ChunkedSum(torch.autograd.Function):
    """The sum L = Σ L_c of the chunks' losses, and in the same pass its gradients.

    The chunks have no tokens in common, so for g = dLoss/dL, a scalar:

        dLoss/dh = g · (dL_1/dh_1, dL_2/dh_2, …)                (tokens, in)
        dLoss/dθ = g · Σ dL_c/dθ                                shape of θ
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        targets: Tensor,
        chunk_tokens: int,
        hidden: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        is_read, *is_trained = ctx.needs_input_grad[3:]
        trained = [p for p, wanted in zip(parameters, is_trained, strict=True) if wanted]
        # Sums of many small terms are kept in float32 at least, and rounded once.
        sums = [torch.zeros_like(p, dtype=_wide(p.dtype)) for p in trained]
        grad_hidden = torch.empty_like(hidden) if is_read else None
        losses, done = [], 0
        for chunk, chunk_targets in chunks(hidden, targets, chunk_tokens):
            with torch.enable_grad():
                leaf = chunk.detach().requires_grad_(is_read)
                loss = loss_of(leaf, chunk_targets)
            wanted = [leaf, *trained] if is_read else trained
            found: list[Tensor] = []
            if wanted:
                found += torch.autograd.grad(loss, wanted, materialize_grads=True)
            if grad_hidden is not None:
                grad_hidden[done : done + len(chunk)] = found[0]
            for total, part in zip(sums, found[is_read:], strict=True):
                total += part
            losses.append(loss.detach())
            done += len(chunk)
        rounded = iter([s.to(p.dtype) for s, p in zip(sums, trained, strict=True)])
        of_parameters = [next(rounded) if wanted else None for wanted in is_trained]
        ctx.gradients = (grad_hidden, *of_parameters)
        return _sum(losses, hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Any, ...]:
        gradients = (None if g is None else g * grad_loss for g in ctx.gradients)
        return None, None, None, *gradients


def chunks(hidden: Tensor, targets: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield chunks of (tokens, in) and (tokens,), of at most `size` tokens."""
    return zip(hidden.split(size), targets.split(size), strict=True)


def _sum(losses: Iterable[Tensor], hidden: Tensor) -> Tensor:
    total = torch.zeros((), dtype=_wide(hidden.dtype), device=hidden.device)
    for loss in losses:
        total = total + loss
    return total


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)

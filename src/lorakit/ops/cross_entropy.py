"""The cross-entropy of logits, and of an output layer that is not trained.

torch computes it in several passes over tensors of the logits' size: a copy in float32, the
log-probabilities, their gradient, its copy in 16 bits. The compiled function reads each row of
logits once and leaves the gradient in its place, in an eighth of the time; without it, operations
of torch that work in place compute the same. See `python -m benchmarks.output_loss`.
"""

# torch gives the parameters of Function.backward no names, and no public name to transformations.
# pyright: reportIncompatibleMethodOverride=false, reportPrivateUsage=false

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lorakit.ops.native import cross_entropy_kernel
from lorakit.ops.native.cpu_kernels import takes
from lorakit.ops.weight_products import backward_product, forward_product, padded_rows


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute -log softmax(logits)[target] of each token, without a graph.

    Args:
        logits: (tokens, vocabulary).
        targets: Token ids, (tokens,), int64.

    Returns: (tokens,), float32 at least.

    Raises:
        ValueError: There are more or fewer targets than rows of logits.
        IndexError: A target is not in the vocabulary.
    """
    kernel = _kernel(logits)
    if kernel is not None:
        return kernel(logits, targets, replaces=False)
    return F.cross_entropy(_widened(logits), targets, reduction="none")


def cross_entropies_(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute `cross_entropies`, and write their gradient over the logits.

    d(Σ loss)/d logits = softmax(logits) - onehot(target)       (tokens, vocabulary)
    """
    kernel = _kernel(logits)
    if kernel is not None:
        return kernel(logits, targets, replaces=True)
    wide, where = _widened(logits), targets[:, None]
    log_probs = torch.log_softmax(wide, -1, out=wide)  # one buffer for all of it
    losses = -log_probs.gather(1, where).squeeze(1)
    surplus = log_probs.exp_()
    surplus.scatter_add_(1, where, surplus.new_full(where.shape, -1.0))
    if wide is not logits:
        logits.copy_(surplus)
    return losses


def frozen_linear_cross_entropies(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> Tensor:
    """Compute the cross-entropies of h Wᵀ + b, of which only h has a gradient.

    Args:
        hidden: h, (tokens, in).
        weight: W, (vocabulary, in), dtype of `hidden`.
        bias: b, (vocabulary,), likewise; or None.
        targets: Token ids, (tokens,), int64.

    Returns: (tokens,), float32 at least, differentiable once.

    Memory: one tensor of logits, in forward.
    """
    return _FrozenLinearCrossEntropies.apply(hidden, weight, bias, targets)  # type: ignore[return-value]  # `apply` has no types


def suits_frozen_linear(hidden: Tensor, weight: Tensor) -> bool:
    """Return whether `frozen_linear_cross_entropies` is for these; it is measured on CPUs only."""
    return (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None  # type: ignore[attr-defined]  # torch's private name
        and takes(hidden)
        and takes(weight)
    )


class _FrozenLinearCrossEntropies(torch.autograd.Function):
    """v_t = -log softmax(h_t Wᵀ + b)[target_t], and in the same pass its gradient.

    v_t depends on h_t alone, so for g = dLoss/dv, (tokens,):

        dLoss/dh_t = g_t · (softmax(h_t Wᵀ + b) - onehot(target_t)) W      (tokens, in)
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        count = len(hidden)
        logits = forward_product(padded_rows(hidden, hidden.dtype), weight, bias)
        if not ctx.needs_input_grad[0]:
            return cross_entropies(logits[:count], targets)
        losses = cross_entropies_(logits[:count], targets)
        ctx.save_for_backward(backward_product(logits, weight)[:count])
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Any, ...]:
        (gradients,) = ctx.saved_tensors
        return (gradients * grad_losses[:, None]).to(gradients.dtype), None, None, None


def _kernel(logits: Tensor) -> cross_entropy_kernel.CrossEntropyKernel | None:
    return cross_entropy_kernel.load() if takes(logits) else None


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))

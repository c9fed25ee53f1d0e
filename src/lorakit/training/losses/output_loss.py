"""Compute the loss of a language model from the inputs of its output layer, in chunks of tokens.

The model runs, but its output layer receives no token instead of all. The loss of all counted
tokens is then computed in chunks from the inputs that the output layer would have received, so that
no step holds all logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.adapters.sharded import is_fsdp_unit, unsharded_class
from lorakit.errors import TrainingError
from lorakit.layers import ReplacedModule
from lorakit.ops.compute_dtype import autocast_dtype, autocast_off
from lorakit.ops.cross_entropy import (
    cross_entropies,
    frozen_linear_cross_entropies,
    suits_frozen_linear,
)
from lorakit.ops.linear_loss import (
    CHUNK_TOKENS,
    chunks,
    linear_cross_entropy_sum,
    sum_over_chunks,
    values_and_gradients,
    values_over_chunks,
)
from lorakit.ops.weight_products import frozen_linear, padded_rows
from lorakit.training.losses.counted_labels import count_labels
from lorakit.training.losses.logit_form import LogitForm
from lorakit.training.losses.token_loss import TokenLoss

LossesElsewhere = Callable[["OutputLoss", TokenLoss, Tensor, Tensor], Tensor | None]
"""Function of the loss, the loss of a token, (tokens, in) and targets that returns (tokens,), with
a graph, or None to compute them here."""


_Losses = Callable[[Tensor, Tensor], Tensor]
"""Function of (chunk, in) and targets that returns the loss of each token, (chunk,)."""


class OutputLoss:
    """The loss of a causal or sequence-to-sequence language model, in chunks of tokens.

    `find_output_loss` (in its own module) makes one whose loss equals the model's.
    """

    def __init__(self, head: nn.Module, *, shifts: bool):
        self.head = head
        """The output layer, adapted or not."""
        self.form = LogitForm()
        self.shifts = shifts
        """Whether a token's target is the next label, as in causal models."""
        self.chunk_tokens = CHUNK_TOKENS
        self.losses_elsewhere: LossesElsewhere | None = None
        """What computes the losses of a head that is not trained together with those of others;
        None if nothing does."""
        self._hidden: Tensor | None = None
        self._calls = 0
        self._autocast_dtype: torch.dtype | None = None

    # ---- running the model ----

    def run(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Any, Tensor]:
        """Run a model without computing the logits of all tokens.

        Args:
            model: The model, possibly wrapped.
            inputs: The model's inputs, without labels.

        Returns: The model's outputs, with logits of no token, (batch, 0, vocabulary); and the input
            of the output layer, (batch, tokens, in), with its graph.

        Raises:
            TrainingError: The model does not call its output layer exactly once.
        """
        self._hidden, self._calls = None, 0
        handle = self.head.register_forward_pre_hook(self._keep_input)
        try:
            outputs = model(**inputs)
        finally:
            handle.remove()
        hidden, self._hidden = self._hidden, None
        if hidden is None or self._calls != 1:
            raise TrainingError(
                f"The loss of this {type(model).__name__} cannot be computed in chunks: its output "
                f"layer ran {self._calls} times, expected once. Report the model to lorakit."
            )
        return outputs, hidden

    def _keep_input(self, head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        self._autocast_dtype = autocast_dtype(hidden.device.type)
        self._hidden = hidden
        self._calls += 1
        return (hidden.detach()[:, :0], *args[1:])

    def _model_autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Apply the autocast that was active when the model ran its output layer."""
        if self._autocast_dtype is None:
            return autocast_off(device.type)
        return torch.autocast(device.type, dtype=self._autocast_dtype)

    # ---- the loss ----

    def select_counted(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Select the tokens that count; reads the labels.

        Args:
            hidden: Input of the output layer, (batch, tokens, in).
            labels: (batch, tokens), -100 where a token does not count.

        Returns: Their inputs, (counted, in), and their targets, (counted,).
        """
        counted = count_labels({"labels": labels}, shifts=self.shifts)
        return counted.select(hidden), counted.targets.to(hidden.device)

    def sum(self, hidden: Tensor, targets: Tensor, token_loss: TokenLoss) -> Tensor:
        """Return the loss summed over tokens, a scalar.

        Args:
            hidden: Input of the output layer, (tokens, in).
            targets: Token ids, (tokens,).
            token_loss: The loss of a token.
        """
        losses = self._losses_elsewhere(hidden, targets, token_loss)
        if losses is not None:
            return losses.sum()
        linear = self._for_torch(hidden) if token_loss.is_plain else None
        if linear is not None:
            weight, bias = linear
            with autocast_off(hidden.device.type):
                return linear_cross_entropy_sum(
                    self._scaled(hidden, weight.dtype), weight, bias, targets,
                    chunk_tokens=self.chunk_tokens,
                )  # fmt: skip
        losses_of = self._losses_of(hidden, token_loss)
        return sum_over_chunks(
            lambda h, t: losses_of(h, t).sum(),
            hidden,
            targets,
            [parameter for parameter in self.head.parameters() if parameter.requires_grad],
            chunk_tokens=self.chunk_tokens,
        )

    def _losses_elsewhere(
        self, hidden: Tensor, targets: Tensor, token_loss: TokenLoss
    ) -> Tensor | None:
        """Return the losses of tokens, (tokens,), if they are computed together with others'."""
        elsewhere = self.losses_elsewhere
        if elsewhere is None or not torch.is_grad_enabled() or not len(hidden):
            return None
        if self.frozen_weight is None:
            return None
        return elsewhere(self, token_loss, hidden, targets)

    @property
    def frozen_weight(self) -> Tensor | None:
        """The weight of the output layer if it is a plain linear layer that is not trained."""
        linear = _plain_linear(self.head)
        if linear is None or any(p.requires_grad for p in linear.parameters()):
            return None
        return linear.weight

    def losses_and_gradients(
        self, hidden: Tensor, targets: Tensor, token_loss: TokenLoss
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of each token and its gradient, where the output layer is not trained.

        Args:
            hidden: Input of the output layer, (tokens, in).
            targets: Token ids, (tokens,).
            token_loss: The loss of a token.

        Returns: (tokens,) and (tokens, in), without a graph.
        """
        losses_of = self._losses_of(hidden, token_loss)
        return values_and_gradients(losses_of, hidden, targets, chunk_tokens=self.chunk_tokens)

    @torch.no_grad()
    def losses_and_hits(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the negative log-likelihoods, and the number of correct top predictions.

        Args:
            hidden: Input of the output layer, (tokens, in).
            targets: Token ids, (tokens,).

        Returns: The first (tokens,), float32 at least, the second a scalar; without a graph.
        """
        hits = torch.zeros((), dtype=torch.int64, device=targets.device)
        losses = []
        with self._model_autocast(hidden.device):
            for h, t in chunks(hidden, targets, self.chunk_tokens):
                logits = self._logits(h)
                hits.add_((logits.argmax(-1) == t).sum())
                losses.append(cross_entropies(logits, t))
        return torch.cat(losses), hits

    def log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probability of each token.

        Args:
            hidden: Input of the output layer, (tokens, in).
            targets: Token ids, (tokens,).

        Returns: (tokens,), float32 at least.
        """
        trained = [p for p in self.head.parameters() if p.requires_grad]
        losses_of = self._losses_of(hidden, TokenLoss())
        return -values_over_chunks(
            losses_of, hidden, targets, trained, chunk_tokens=self.chunk_tokens
        )

    @torch.no_grad()
    def divergences(
        self,
        hidden: Tensor,
        reference_hidden: Tensor,
        acting_reference: Callable[[], AbstractContextManager[Any]],
    ) -> Tensor:
        """Return the divergence KL(model || reference) of each predicted token.

        Args:
            hidden: Input of the output layer, (tokens, in).
            reference_hidden: Likewise of the reference, whose head may differ.
            acting_reference: Returns a context in which the reference acts.

        Returns: (tokens,), in nats.
        """
        found = []
        chunks = (x2d.split(self.chunk_tokens) for x2d in (hidden, reference_hidden))
        with self._model_autocast(hidden.device):
            for h, reference_h in zip(*chunks, strict=True):
                with acting_reference():
                    expected = self._logits(reference_h).log_softmax(-1)
                log_probs = self._logits(h).log_softmax(-1)
                found.append((log_probs.exp() * (log_probs - expected)).sum(-1))
        return torch.cat(found) if found else hidden.new_zeros(0)

    def _losses_of(self, hidden: Tensor, token_loss: TokenLoss) -> _Losses:
        """Return the function of a chunk that returns the loss of each token."""
        frozen = self._frozen_for_us(hidden) if token_loss.is_plain else None

        def losses_of(h: Tensor, t: Tensor) -> Tensor:
            if frozen is None:
                with self._model_autocast(h.device):
                    return token_loss(self._logits(h), t)
            weight, bias = frozen
            with autocast_off(h.device.type):
                h = self._scaled(h, weight.dtype)
                return frozen_linear_cross_entropies(h, weight, bias, t)

        return losses_of

    def _frozen_for_us(self, hidden: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Return weight and bias if `frozen_linear_cross_entropies` is for this head, else None.

        Logits in 16 bits are widened before they are scaled or moved, which it does not do.
        """
        found = self.frozen_weight
        # Checked first: on a GPU autocast's copy of the weight would be made for nothing.
        if found is None or self.form.cap is not None or hidden.device.type != "cpu":
            return None
        dtype = self._autocast_dtype or found.dtype
        if dtype != torch.float32 and not self.form.is_identity:
            return None
        weight = found.to(dtype)
        return (weight, self._bias(dtype)) if suits_frozen_linear(hidden, weight) else None

    def _logits(self, hidden: Tensor) -> Tensor:
        """Return the model's logits, in float32 as in transformers' losses."""
        # The hooks of a sharded head gathered its weights when the model ran. Here they would
        # mistake the backward of a chunk for that of the step.
        head = self.head.forward if is_fsdp_unit(self.head) else self.head
        linear = _plain_linear(self.head)
        rows = padded_rows(hidden, self._autocast_dtype or hidden.dtype)
        is_trained = linear is None or any(p.requires_grad for p in linear.parameters())
        # A copy in another dtype than the base casts its input and its output itself.
        if linear is None or is_trained or linear.weight.dtype != rows.dtype:
            logits = head(rows)
        else:
            logits = frozen_linear(rows, linear.weight, linear.bias)
        logits = logits if rows is hidden else logits[: len(hidden)]
        return self.form(logits.to(torch.promote_types(logits.dtype, torch.float32)))

    def _for_torch(self, hidden: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Return weight and bias if torch's chunked loss is for this head, else None.

        It is where the logits are one product of scale · hidden.
        """
        linear = _plain_linear(self.head)
        if linear is None or self.form.cap is not None or self._autocast_dtype is not None:
            return None
        if self._frozen_for_us(hidden) is not None:
            return None
        # On a CPU torch's chunked loss would convert the whole half-precision weight to float32.
        if linear.weight.dtype in (torch.float16, torch.bfloat16) and hidden.device.type == "cpu":
            return None
        return linear.weight, self._bias(linear.weight.dtype)

    def _scaled(self, hidden: Tensor, dtype: torch.dtype) -> Tensor:
        hidden = hidden.to(dtype)
        return hidden if self.form.scale == 1.0 else hidden * self.form.scale

    def _bias(self, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to the product of weight and scale · hidden; None if nothing is."""
        linear = _plain_linear(self.head)
        bias: Tensor | None = None if linear is None else linear.bias
        if bias is not None:
            bias = bias.to(dtype) * self.form.scale if self.form.scale != 1.0 else bias.to(dtype)
        if self.form.offset is not None:
            offset = self.form.offset.to(dtype)
            bias = offset if bias is None else bias + offset
        return bias


def _plain_linear(head: nn.Module) -> nn.Linear | None:
    """Return the output layer, or its trained copy, if it is a plain linear layer."""
    acting = head
    if isinstance(head, ReplacedModule) and head.active_copy is not None:
        acting = head.trained_copies[head.active_copy]
    if unsharded_class(acting) is not nn.Linear:
        return None
    is_bare = all(
        "forward" not in vars(module)
        and (
            is_fsdp_unit(module)
            or not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        )
        for module in (head, acting)
    )
    return acting if is_bare else None  # type: ignore[return-value]  # heads are Linear

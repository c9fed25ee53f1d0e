"""Compute the loss of a language model from the inputs of its output layer, in chunks of tokens.

The model runs, but its output layer receives a single token instead of all. The loss of all counted
tokens is then computed in chunks from the inputs that the output layer would have received, so that
no step holds all logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.adapters.sharded import is_fsdp_unit, unsharded_class
from lorakit.errors import TrainingError
from lorakit.layers import ReplacedModule
from lorakit.ops.compute_dtype import autocast_dtype, autocast_off
from lorakit.ops.linear_loss import (
    CHUNK_TOKENS,
    chunks,
    linear_cross_entropy_sum,
    sum_over_chunks,
    values_over_chunks,
)
from lorakit.training.losses.counted_labels import count_labels
from lorakit.training.losses.logit_form import LogitForm, candidate_forms, named_form

_FORM_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
_LOSS_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# Half precision: up to four roundings of 2^-8 each for a logit, fewer for the mean of many.
_HALF_FORM_TOLERANCE, _HALF_LOSS_TOLERANCE = 3e-2, 1e-2


@dataclass(frozen=True)
class TokenLoss:
    """The loss of a token; by default the negative log-likelihood."""

    label_smoothing: float = 0.0
    """Share of the target probability that is spread over the vocabulary."""
    weighs_by_probability: bool = False
    """Dynamic fine-tuning: multiply by the token's detached probability (arXiv:2508.05629)."""

    @property
    def is_plain(self) -> bool:
        """Whether it is the negative log-likelihood."""
        return not self.label_smoothing and not self.weighs_by_probability

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over tokens: (tokens, vocabulary) and (tokens,) to a scalar."""
        if self.weighs_by_probability:
            losses = F.cross_entropy(logits, targets, reduction="none")
            return (losses * (-losses).exp().detach()).sum()
        return F.cross_entropy(
            logits, targets, reduction="sum", label_smoothing=self.label_smoothing
        )


class OutputLoss:
    """The loss of a causal or sequence-to-sequence language model, in chunks of tokens.

    `find_output_loss` makes one whose loss equals the model's.
    """

    def __init__(self, head: nn.Module, *, shifts: bool):
        self.head = head
        """The output layer, adapted or not."""
        self.form = LogitForm()
        self.shifts = shifts
        """Whether a token's target is the next label, as in causal models."""
        self.chunk_tokens = CHUNK_TOKENS
        self._hidden: Tensor | None = None
        self._calls = 0
        self._autocast_dtype: torch.dtype | None = None

    # ---- running the model ----

    def run(self, model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Any, Tensor]:
        """Run a model without computing the logits of all tokens.

        Args:
            model: The model, possibly wrapped.
            inputs: The model's inputs, without labels.

        Returns: The model's outputs, with the logits of a single token; and the input of the output
            layer, (batch, tokens, in), with its graph.

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
        return (hidden.detach()[:1, :1], *args[1:])

    def _model_autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Apply the autocast that was active when the model ran its output layer."""
        if self._autocast_dtype is None:
            return autocast_off(device.type)
        return torch.autocast(device.type, dtype=self._autocast_dtype)

    # ---- the loss ----

    def counted(self, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
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
        with self._model_autocast(hidden.device):
            linear = self._as_linear(hidden) if token_loss.is_plain else None
            if linear is not None:
                weight, bias = linear
                hidden = hidden.to(weight.dtype)
                hidden = hidden if self.form.scale == 1.0 else hidden * self.form.scale
                return linear_cross_entropy_sum(
                    hidden, weight, bias, targets, chunk_tokens=self.chunk_tokens
                )
            return sum_over_chunks(
                lambda h, t: token_loss(self._logits(h), t),
                hidden,
                targets,
                [parameter for parameter in self.head.parameters() if parameter.requires_grad],
                chunk_tokens=self.chunk_tokens,
            )

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
                losses.append(F.cross_entropy(logits, t, reduction="none"))
        return torch.cat(losses), hits

    def log_probs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the log-probability of each token.

        Args:
            hidden: Input of the output layer, (tokens, in).
            targets: Token ids, (tokens,).

        Returns: (tokens,), float32 at least.
        """
        device = hidden.device

        def values_of(h: Tensor, t: Tensor) -> Tensor:
            with self._model_autocast(device):
                return -F.cross_entropy(self._logits(h), t, reduction="none")

        trained = [p for p in self.head.parameters() if p.requires_grad]
        return values_over_chunks(
            values_of, hidden, targets, trained, chunk_tokens=self.chunk_tokens
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

    def _logits(self, hidden: Tensor) -> Tensor:
        """Return the model's logits, in float32 as in transformers' losses."""
        # The hooks of a sharded head gathered its weights when the model ran. Here they would
        # mistake the backward of a chunk for that of the step.
        head = self.head.forward if is_fsdp_unit(self.head) else self.head
        logits = head(hidden)
        return self.form(logits.to(torch.promote_types(logits.dtype, torch.float32)))

    def _as_linear(self, hidden: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """Return weight and bias if the logits are one product of scale · hidden, else None."""
        linear = _plain_linear(self.head)
        if linear is None or self.form.cap is not None or self._autocast_dtype is not None:
            return None
        # On a CPU torch's chunked loss would convert the whole half-precision weight to float32.
        if linear.weight.dtype in (torch.float16, torch.bfloat16) and hidden.device.type == "cpu":
            return None
        bias: Tensor | None = linear.bias
        if bias is not None and self.form.scale != 1.0:
            bias = bias * self.form.scale
        if self.form.offset is not None:
            offset = self.form.offset.to(linear.weight.dtype)
            bias = offset if bias is None else bias + offset
        return linear.weight, bias


def find_output_loss(
    model: Any,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    *,
    auxiliary_weight: float = 0.0,
) -> tuple[OutputLoss | None, str]:
    """Find the computation from a model's output layer to its loss, by trying a few tokens.

    Candidates for the transformation of the logits come from the model's configuration; the one
    that reproduces the model on given logits is taken. Then the loss is compared with the model's.

    Args:
        model: A transformers model, adapted or not.
        inputs: Model inputs of a few tokens, without labels.
        labels: Their labels, (batch, tokens).
        auxiliary_weight: Weight of a mixture of experts' auxiliary loss; 0 for none.

    Returns: The loss and "", or None and the reason why there is none, half a sentence.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module):
        return None, "it names no output layer"
    loss = OutputLoss(head, shifts=not model.config.is_encoder_decoder)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            reason = _adopt_form(loss, model, inputs)
            reason = reason or _difference(loss, model, inputs, labels, auxiliary_weight)
    except Exception as error:  # a model's own code may raise anything
        said = (str(error).splitlines() or ["nothing"])[0]
        reason = f"trying it raised {type(error).__name__}: {said.rstrip('.')}"
    finally:
        model.train(was_training)
    return (None, reason) if reason else (loss, "")


def assumed_output_loss(model: Any) -> OutputLoss | None:
    """Return the loss that a model's configuration describes, without running the model.

    Args:
        model: A transformers model; its weights are not read.

    Returns: The loss, or None for a model without output embeddings.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module):
        return None
    loss = OutputLoss(head, shifts=not model.config.is_encoder_decoder)
    loss.form = named_form(model)
    return loss


def all_logits_note(model: nn.Module, reason: str) -> str:
    """Return the note that a model computes its loss itself, and why."""
    return (
        "Each step computes the logits of all its tokens at once, because lorakit cannot follow "
        f"this {type(model).__name__} from its output layer to its loss: {reason}."
    )


def _adopt_form(loss: OutputLoss, model: Any, inputs: Mapping[str, Tensor]) -> str:
    """Set the model's transformation of the logits, or return why it is unknown."""
    given: list[Tensor] = []

    def exchange(head: nn.Module, args: Any, output: Tensor) -> Tensor:
        given.append(_probe(output))
        return given[0]

    handle = loss.head.register_forward_hook(exchange)
    try:
        outputs, _ = loss.run(model, inputs)
    finally:
        handle.remove()
    got: Tensor = outputs.logits
    if got.shape != given[0].shape:
        return "it does not return all logits of its output layer"
    tolerance = _FORM_TOLERANCE.get(given[0].dtype, _HALF_FORM_TOLERANCE)
    for form in candidate_forms(model, got.shape[-1]):
        if _are_close(form(given[0].float()), got, tolerance):
            loss.form = form
            return ""
    return "it changes the logits of its output layer in an unknown way"


def _difference(
    loss: OutputLoss,
    model: Any,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    auxiliary_weight: float,
) -> str:
    """Return how the loss differs from the model's, or ""."""
    outputs, hidden = loss.run(model, inputs)
    if hidden.shape[:-1] != labels.shape:
        return "its output layer does not read one vector for each token"
    x2d, targets = loss.counted(hidden, labels)
    mean = loss.sum(x2d, targets, TokenLoss()) / len(targets)
    if auxiliary_weight:
        mean = mean + auxiliary_weight * outputs.aux_loss
    expected: Tensor = model(**inputs, labels=labels).loss
    tolerance = _LOSS_TOLERANCE.get(hidden.dtype, _HALF_LOSS_TOLERANCE)
    if _are_close(mean, expected, tolerance):
        return ""
    return f"its loss is {expected.item():.6g} where its output layer gives {mean.item():.6g}"


def _probe(output: Tensor) -> Tensor:
    """Return zero, small, usual and large logits, which reveal how a model transforms them."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([0.0, 1.0, 10.0, 100.0]).reshape(1, 4, 1)
    logits = sizes * torch.randn(1, 4, output.shape[-1], generator=generator)
    return logits.to(output)


def _are_close(got: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether the error of each token is within the tolerance, relative to its largest entry."""
    got, expected = got.double(), expected.double()
    error = (got - expected).abs()
    size = expected.abs()
    if got.ndim:
        error, size = error.amax(-1), size.amax(-1)
    return bool((error <= tolerance * size).all())


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
    return acting if is_bare else None  # type: ignore[return-value]

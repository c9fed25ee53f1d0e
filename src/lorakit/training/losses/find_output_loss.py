"""Find the computation from a model's output layer to its loss, by trying a few tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.training.losses.logit_form import candidate_forms, read_logit_form
from lorakit.training.losses.output_loss import OutputLoss
from lorakit.training.losses.token_loss import TokenLoss

_FORM_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
_LOSS_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
# Half precision: up to four roundings of 2^-8 each for a logit, fewer for the mean of many.
_HALF_FORM_TOLERANCE, _HALF_LOSS_TOLERANCE = 3e-2, 1e-2


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


def read_output_loss(model: Any) -> OutputLoss | None:
    """Return the loss that a model's configuration describes, without running the model.

    Args:
        model: A transformers model; its weights are not read.

    Returns: The loss, or None for a model without output embeddings.
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Module):
        return None
    loss = OutputLoss(head, shifts=not model.config.is_encoder_decoder)
    loss.form = read_logit_form(model)
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
    x2d, targets = loss.select_counted(hidden, labels)
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

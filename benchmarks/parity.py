"""No speed is bought with wrong numbers: a peer is timed only if it computes what lorakit does."""

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.variants import FULL, LIMIT, LORAKIT, Variant

LOSS_TOLERANCE = {
    # Sums over a few thousand products in another order, through up to 24 blocks.
    torch.float32: 1e-5,
    # 8 bits of mantissa: each layer rounds its output once or twice by up to 3.9e-3.
    torch.bfloat16: 2e-2,
}
"""Largest relative difference of a loss from lorakit's, by dtype of the base."""

GRADIENT_TOLERANCE = {
    torch.float32: 1e-3,
    # The roundings of all layers above and below add up in a gradient.
    torch.bfloat16: 1e-1,
}
"""Largest ‖difference‖ / ‖lorakit's gradient‖ of any one A or B, by dtype of the base."""

OUTPUT_TOLERANCE = {
    torch.float32: 1e-4,
    # A merge rounds each weight to 8 bits of mantissa, and each layer rounds its output.
    torch.bfloat16: 5e-2,
}
"""Largest ‖difference‖ / ‖expected‖ of an output, by dtype of the base."""


class ParityError(RuntimeError):
    """Two variants that should compute the same do not."""


def check_parity(
    variants: Mapping[str, Variant], batch: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Compare loss and the gradient of every A and B with lorakit's, without dropout.

    The models are put into eval mode for it, which switches dropout off, and back into train mode.

    Raises:
        ParityError: A variant differs by more than the tolerance; names it and the place.
    """
    expected_loss, expected = loss_and_gradients(variants[LORAKIT], batch)
    plain_losses = {}
    for name, variant in variants.items():
        if name == LORAKIT:
            continue
        loss, gradients = loss_and_gradients(variant, batch)
        if name in (LIMIT, FULL):
            plain_losses[name] = loss
            continue
        _check_loss(name, loss, expected_loss, LOSS_TOLERANCE[dtype])
        if gradients.keys() != expected.keys():
            different = sorted(gradients.keys() ^ expected.keys())
            raise ParityError(
                f"{name} trains other factors than lorakit: {len(different)} differ, the first "
                f"at {different[0]}."
            )
        for place, gradient in gradients.items():
            _check_gradient(name, place, gradient, expected[place], GRADIENT_TOLERANCE[dtype])
    if len(plain_losses) == 2:
        _check_loss(FULL, plain_losses[FULL], plain_losses[LIMIT], LOSS_TOLERANCE[dtype])


def check_outputs(outputs: Mapping[str, Tensor], reference: str, dtype: torch.dtype) -> None:
    """Compare the logits of several variants with those of one of them.

    Raises:
        ParityError: A variant differs by more than the tolerance; names it.
    """
    for name, output in outputs.items():
        check_tensors(name, "logits", output, outputs[reference], dtype)


def check_tensors(
    name: str, quantity: str, got: Tensor, expected: Tensor, dtype: torch.dtype
) -> None:
    """Compare what a variant computed with what is expected of it.

    Raises:
        ParityError: It differs by more than the tolerance for outputs.
    """
    error = relative_error(got, expected)
    if not error <= OUTPUT_TOLERANCE[dtype]:
        raise ParityError(
            f"{name} computes other {quantity} than expected: relative error {error:.2g}, "
            f"tolerance {OUTPUT_TOLERANCE[dtype]:g}."
        )


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return ‖got - expected‖ / ‖expected‖."""
    expected = expected.float()
    return ((got.float() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def loss_and_gradients(
    variant: Variant, batch: dict[str, Tensor]
) -> tuple[float, dict[tuple[str, str], Tensor]]:
    """Run one step without dropout; return its loss and the gradients of A and B in float32."""
    variant.module.eval()
    loss = variant.loss(batch)
    loss.backward()
    gradients = {}
    for place, factor in variant.factors.items():
        if factor.grad is None:
            raise ParityError(f"{variant.name} has no gradient for lora_{place[1]} of {place[0]}.")
        gradients[place] = factor.grad.detach().float().clone()
    variant.module.zero_grad(set_to_none=True)
    variant.module.train()
    return loss.item(), gradients


def _check_loss(name: str, loss: float, expected: float, tolerance: float) -> None:
    error = abs(loss - expected) / abs(expected)
    if not error <= tolerance:
        raise ParityError(
            f"{name} has a loss of {loss:.6g} where {expected:.6g} is expected: relative error "
            f"{error:.2g}, tolerance {tolerance:g}."
        )


def _check_gradient(
    name: str, place: tuple[str, str], gradient: Tensor, expected: Tensor, tolerance: float
) -> None:
    error = relative_error(gradient, expected)
    if not error <= tolerance:
        raise ParityError(
            f"{name} has another gradient for lora_{place[1]} of {place[0]} than lorakit: relative "
            f"error {error:.2g}, tolerance {tolerance:g}."
        )

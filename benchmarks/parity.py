"""No speed is bought with wrong numbers: a peer is timed only if it computes what lorakit does."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.variants import FULL, LIMIT, LORAKIT, Variant, factors_of

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

EXACT_TOLERANCE = 1e-6
"""The same for what was computed in float64 and is compared in float32: one rounding is 6e-8."""

KINK_TOLERANCE = 1e-2
"""The same for float32 gradients of a peer in a model with ReLUs, against float64: PEFT's were off
by 5.9e-3 in the T5-like model, where lorakit's were by 1.5e-4."""

OUTPUT_TOLERANCE = {
    torch.float32: 1e-4,
    # A merge rounds each weight to 8 bits of mantissa, and each layer rounds its output.
    torch.bfloat16: 5e-2,
}
"""Largest ‖difference‖ / ‖expected‖ of an output, by dtype of the base."""


Gradients = Mapping[tuple[str, str], Tensor]
"""By (module path, "A" or "B")."""


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
        try:
            _check_gradients(name, gradients, expected, GRADIENT_TOLERANCE[dtype])
        except ParityError:
            if dtype != torch.float32 or not _has_kinks(variant.module):
                raise
            _check_in_float64(variant, gradients, variants[LORAKIT], expected, batch)
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


def _has_kinks(module: nn.Module) -> bool:
    return any(isinstance(part, nn.ReLU) for part in module.modules())


def _check_in_float64(
    peer: Variant,
    peer_gradients: Gradients,
    subject: Variant,
    subject_gradients: Gradients,
    batch: Any,
) -> None:
    """Tell rounding from a mistake, where float32 gradients of a model with ReLUs differ.

    A ReLU whose input rounds to the other side of zero changes a gradient at once, so in a deep
    model of them float32 gradients differ by more than sums in another order explain. Then the two
    must agree in float64, and in float32 lorakit must be within the usual tolerance of that, and
    the peer within the one for ReLUs.

    Raises:
        ParityError: One of these does not hold.
    """
    loss, exact = loss_and_gradients(_in_float64(subject), batch)
    peer_loss, peer_exact = loss_and_gradients(_in_float64(peer), batch)
    _check_loss(f"{peer.name} in float64", peer_loss, loss, EXACT_TOLERANCE)
    _check_gradients(f"{peer.name} in float64", peer_exact, exact, EXACT_TOLERANCE)
    _check_gradients(subject.name, subject_gradients, exact, GRADIENT_TOLERANCE[torch.float32])
    _check_gradients(peer.name, peer_gradients, exact, KINK_TOLERANCE)


def _in_float64(variant: Variant) -> Variant:
    module = deepcopy(variant.module).double()
    return Variant(variant.name, module, module, factors_of(module))


def _check_loss(name: str, loss: float, expected: float, tolerance: float) -> None:
    error = abs(loss - expected) / abs(expected)
    if not error <= tolerance:
        raise ParityError(
            f"{name} has a loss of {loss:.6g} where {expected:.6g} is expected: relative error "
            f"{error:.2g}, tolerance {tolerance:g}."
        )


def _check_gradients(
    name: str, gradients: Gradients, expected: Gradients, tolerance: float
) -> None:
    for place, gradient in gradients.items():
        error = relative_error(gradient, expected[place])
        if not error <= tolerance:
            raise ParityError(
                f"{name} has another gradient for lora_{place[1]} of {place[0]} than lorakit: "
                f"relative error {error:.2g}, tolerance {tolerance:g}."
            )

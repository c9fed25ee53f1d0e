"""The mask of dropout, a function of (seed, position): recomputed in backward, never stored.

A 64-bit hash of the position gives four 16-bit lanes, one for each element, and an element is
dropped if its lane is below a threshold. The seed comes from torch's generator, so a mask repeats
under `torch.manual_seed` and under gradient checkpointing, which restores that
generator before it runs the layer again.
"""

# register_fake has no types.
# pyright: reportUnknownMemberType=false

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorakit.ops.native import cpu_kernels

_LANE_VALUES = 1 << 16
_LANE_MINIMUM = -(1 << 15)
_ELEMENTS_PER_WORD = 4


def _to_signed(word: int) -> int:
    """Return the two's-complement value of an unsigned 64-bit constant."""
    return word - (1 << 64) if word >= 1 << 63 else word


# Constants of the SplitMix64 generator (Steele, Lea and Flood 2014, OOPSLA, figure 16).
_WEYL_STEP = _to_signed(0x9E3779B97F4A7C15)
_ROUNDS = ((30, _to_signed(0xBF58476D1CE4E5B9)), (27, _to_signed(0x94D049BB133111EB)))
_LAST_SHIFT = 31


def draw_seed(generator: torch.Generator | None = None) -> Tensor:
    """Return a fresh 0-dimensional int64 seed.

    Args:
        generator: A CPU generator; None takes torch's default one.
    """
    # On the CPU whatever the default device is: kernels read it without waiting for a GPU.
    last = (1 << 63) - 1
    return torch.randint(0, last, (), dtype=torch.int64, device="cpu", generator=generator)


def exact_drop_probability(drop_probability: float) -> float:
    """Return the nearest probability that a 16-bit lane can express."""
    return _dropped_lanes(drop_probability) / _LANE_VALUES


def keep_mask(
    shape: torch.Size | tuple[int, ...], drop_probability: float, seed: Tensor, device: torch.device
) -> Tensor:
    """Return which elements are kept, as a function of only the seed and the position.

    Args:
        shape: Shape of the activation that the mask is for.
        drop_probability: In [0, 1), rounded to 16 bits.
        seed: 0-dimensional int64 tensor; a CPU tensor works for every device.
        device: Device of the mask; its values are the same on every device.

    Returns: Boolean tensor of `shape`; True with probability 1 - drop_probability.
    """
    if torch.compiler.is_compiling() and device.type == "cpu":
        return _eager_keep_mask(list(shape), drop_probability, seed)
    return _hash_mask(shape, drop_probability, seed, device)


@torch.library.custom_op("lorakit::keep_mask", mutates_args=())
def _eager_keep_mask(shape: Sequence[int], drop_probability: float, seed: Tensor) -> Tensor:
    """Compute the mask by torch kernels inside a graph that inductor compiles for a CPU.

    Inductor generates signed C++ products, whose overflow gcc assumes impossible: with some
    instruction sets the mask was wrong.
    """
    return _hash_mask(tuple(shape), drop_probability, seed, torch.device("cpu"))


@_eager_keep_mask.register_fake
def _(shape: Sequence[int], drop_probability: float, seed: Tensor) -> Tensor:
    return torch.empty(shape, dtype=torch.bool, device="cpu")


def _hash_mask(
    shape: torch.Size | tuple[int, ...], drop_probability: float, seed: Tensor, device: torch.device
) -> Tensor:
    elements = 1
    for size in shape:
        elements *= size
    words = (elements + _ELEMENTS_PER_WORD - 1) // _ELEMENTS_PER_WORD
    z = torch.arange(words, dtype=torch.int64, device=device)
    z.add_(_operand(seed, device)).mul_(_WEYL_STEP)
    for shift, multiplier in _ROUNDS:
        z.bitwise_xor_(_logical_shift_right(z, shift)).mul_(multiplier)
    z.bitwise_xor_(_logical_shift_right(z, _LAST_SHIFT))
    return (z.view(torch.int16)[:elements] >= _threshold(drop_probability)).view(shape)


def _operand(seed: Tensor, device: torch.device) -> Tensor:
    """Return the seed as an operand on `device`: on the CPU, it is passed with the launch.

    A copy would wait for the GPU. While a CUDA graph is captured that is an error, as it should be:
    the graph would repeat one mask at every replay.
    """
    goes_along = seed.device.type == "cpu" and not torch.compiler.is_compiling()
    return seed if goes_along and not is_captured(device) else seed.to(device)


def is_captured(device: torch.device) -> bool:
    """Return whether a CUDA graph is being captured on this device."""
    return (
        device.type == "cuda"
        and torch.cuda.is_initialized()
        and torch.cuda.is_current_stream_capturing()
    )


def _logical_shift_right(z: Tensor, shift: int) -> Tensor:
    # torch shifts int64 arithmetically; clearing the copied sign bits makes the shift logical.
    return z.bitwise_right_shift(shift).bitwise_and_((1 << (64 - shift)) - 1)


def kernel_mask(drop_probability: float, seed: Tensor | None, shift: int = 0) -> Any:
    """Return the mask for the compiled products: its threshold, scale and seed.

    Args:
        drop_probability: In [0, 1).
        seed: The mask's seed; None if nothing is dropped.
        shift: See `dropout_arguments`.
    """
    if seed is None:
        return cpu_kernels.NO_DROPOUT
    scale = 1.0 / (1.0 - exact_drop_probability(drop_probability))
    return cpu_kernels.dropout_arguments(_threshold(drop_probability), scale, int(seed), shift)


def _threshold(drop_probability: float) -> int:
    return _LANE_MINIMUM + _dropped_lanes(drop_probability)


def _dropped_lanes(drop_probability: float) -> int:
    """Return how many of a lane's values drop an element; never all of them."""
    return min(round(drop_probability * _LANE_VALUES), _LANE_VALUES - 1)

"""The arithmetic of quantization, written out: absmax, blocks, NormalFloat, double quantization.

Training runs bitsandbytes' kernels; this is what they compute, in readable form.
docs/quantization.md explains it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def absmax_int8(x: Tensor) -> tuple[Tensor, float]:
    """Quantize numbers to int8 with one scale: codes = round(c x) with c = 127 / max|x|.

    Args:
        x: Any shape, floating, not all zero.

    Returns: The codes, int8, and c.

    >>> codes, c = absmax_int8(torch.tensor([-1024.0, 5.0, 2048.0, 256.0]))
    >>> codes.tolist(), round(c, 3)
    ([-64, 0, 127, 16], 0.062)

    Source: Dettmers et al. 2023, arXiv:2305.14314, equation 1.
    """
    c = 127 / x.abs().max().item()
    return torch.round(x * c).to(torch.int8), c


def blockwise_int8(x: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Quantize a vector to int8 with a scale per block, so an outlier affects only its block.

    Args:
        x: (n,), n a multiple of block_size.
        block_size: Values that share a scale.

    Returns: The codes, (n,) int8, and c of each block.

    >>> codes, c = blockwise_int8(torch.tensor([0.0, 100.0, 50.0, 100000.0]), 2)
    >>> (codes.view(2, 2) / c[:, None]).view(-1).round().tolist()
    [0.0, 100.0, 0.0, 100000.0]
    """
    blocks = x.view(-1, block_size)
    c = 127 / blocks.abs().amax(1)
    return torch.round(blocks * c[:, None]).to(torch.int8).view(-1), c


def normal_float_code_book(bits: int = 4) -> Tensor:
    """Return the values of NormalFloat: quantiles of a standard normal, scaled to [-1, 1].

    Each value then stands for an equal share of normally distributed weights. Zero has to be exact,
    so the 2^(bits-1) values above it and the 2^(bits-1) - 1 below it are taken from two halves of
    the distribution, each from the median out to the same outermost quantile, and the median is
    used once. That quantile lies midway between those that 2^bits and 2^bits - 1 shares would have
    as the middle of their last share, so that neither end is at infinity.

    Args:
        bits: At least 2.

    Returns: (2^bits,), float64, sorted.

    >>> normal_float_code_book(4)[[0, 7, 8, 15]].round(decimals=4).tolist()
    [-1.0, 0.0, 0.0796, 1.0]

    Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E.
    """
    count = 2**bits
    outermost = 1 - (1 / (2 * count) + 1 / (2 * (count - 1))) / 2
    above = _quantiles(outermost, count // 2)
    below = -_quantiles(outermost, count // 2 - 1)
    values = torch.cat([below, torch.zeros(1, dtype=torch.float64), above])
    return (values / values.abs().max()).sort().values


def _quantiles(outermost: float, count: int) -> Tensor:
    """Return normal quantiles of evenly spaced probabilities from `outermost` down to above 1/2."""
    probabilities = torch.linspace(outermost, 0.5, count + 1, dtype=torch.float64)[:-1]
    return torch.special.ndtri(probabilities)


def code_book_quantize(x: Tensor, code_book: Tensor, block_size: int = 64) -> tuple[Tensor, Tensor]:
    """Quantize a vector to the nearest values of a code book, block by block.

    Args:
        x: (n,), n a multiple of block_size.
        code_book: Values in [-1, 1].
        block_size: Values that share an absmax.

    Returns: Positions in the code book, (n,), and absmax, (n / block_size,).

    >>> values = normal_float_code_book()
    >>> codes, absmax = code_book_quantize(torch.tensor([0.5, -2.0, 0.0, 1.0]), values, 4)
    >>> code_book_dequantize(codes, absmax, values, 4).double().round(decimals=2).tolist()
    [0.49, -2.0, 0.0, 0.88]
    """
    blocks = x.view(-1, block_size)
    absmax = blocks.abs().amax(1)
    scaled = blocks / absmax.clamp(min=torch.finfo(x.dtype).tiny)[:, None]
    codes = (scaled[..., None] - code_book.to(x.dtype)).abs().argmin(-1)
    return codes.view(-1), absmax


def code_book_dequantize(
    codes: Tensor, absmax: Tensor, code_book: Tensor, block_size: int = 64
) -> Tensor:
    """Undo `code_book_quantize`, except for rounding: (n,)."""
    values = code_book.to(absmax.dtype)[codes].view(-1, block_size)
    return (values * absmax[:, None]).view(-1)


def bits_per_parameter(
    bits: int = 4, block_size: int = 64, nested_block_size: int | None = 256
) -> float:
    """Return the bits of a parameter, including its share of the scales.

    Args:
        bits: Bits of its code.
        block_size: Values that share a scale.
        nested_block_size: Scales that share a second-level scale, so that each takes 8 bits
            instead of 32; None for one level.

    >>> bits_per_parameter(nested_block_size=None), round(bits_per_parameter(), 3)
    (4.5, 4.127)

    Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 (double quantization).
    """
    if nested_block_size is None:
        return bits + 32 / block_size
    return bits + 8 / block_size + 32 / (block_size * nested_block_size)

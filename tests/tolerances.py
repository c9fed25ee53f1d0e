"""How far two results may differ, by dtype, and why.

Relative errors are measured against the largest absolute value of the expected tensor, as single
elements near zero say nothing about a sum of products.
"""

import torch

TOLERANCE = {
    # Sums of at most 64 products: each addition rounds by 1.1e-16.
    torch.float64: 1e-12,
    # The same sums in another order: 64 * 6e-8, rounded up.
    torch.float32: 5e-6,
    # 11 bits of mantissa: one rounding is 4.9e-4; input of B, product and sum round once each.
    torch.float16: 2e-3,
    # 8 bits of mantissa: one rounding is 3.9e-3; input of B, product and sum round once each.
    torch.bfloat16: 1.6e-2,
}

GRADIENT_TOLERANCE = {
    # A gradient passes two low-rank products, so twice as many roundings as the output.
    dtype: 2 * tolerance
    for dtype, tolerance in TOLERANCE.items()
}

# Logits of a tiny two-layer model in float32 from two programs that add up in another order.
LOGITS_TOLERANCE = 2e-5

# One half unit in the last place of the largest weight: a merge rounds each weight once.
MERGE_TOLERANCE = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def largest_error(got, expected):
    """Return max |got - expected| over max |expected|, computed in float64."""
    got, expected = got.detach().double(), expected.detach().double()
    assert got.shape == expected.shape, (got.shape, expected.shape)
    if got.numel() == 0:
        return 0.0
    return ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()

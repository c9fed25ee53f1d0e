"""Attention over a few tokens: torch's output, and gradients as exact as torch's."""

import pytest
import torch
from torch.nn import functional as F

from lorakit.ops.short_attention import short_attention, takes

ROWS, HEADS, TOKENS, WIDTH = 3, 4, 9, 16


def operands(heads=HEADS, dtype=torch.bfloat16, tokens=TOKENS):
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, tokens, count, WIDTH) for count in (HEADS, heads, heads, HEADS)]
    q, k, v, g = (torch.randn(s, generator=generator).to(dtype).transpose(1, 2) for s in shapes)
    return [each.requires_grad_() for each in (q, k, v)], g


def additive():
    return torch.linspace(-2, 2, TOKENS * TOKENS).view(1, 1, TOKENS, TOKENS).bfloat16()


def readable():
    mask = torch.ones(ROWS, 1, TOKENS, TOKENS, dtype=torch.bool).tril_()
    mask[0, :, :, :4] = False  # padding on the left, whose tokens read none
    return mask


MASKS = {
    "all": (None, False),
    "causal": (None, True),
    "additive": (additive(), False),
    "boolean": (readable(), False),
}


def error(got, exact):
    return max(
        float((one.double() - other).norm() / other.norm())
        for one, other in zip(got, exact, strict=True)
    )


@pytest.mark.parametrize("heads", [HEADS, 2])
@pytest.mark.parametrize("kind", MASKS)
def test_the_output_is_torch_s_and_gradients_are_as_exact(kind, heads):
    mask, is_causal = MASKS[kind]
    leaves, g = operands(heads)
    output = short_attention(*leaves, mask, is_causal, 0.3)
    got = torch.autograd.grad(output, leaves, g)

    def by_torch(leaves, mask):
        q, k, v = leaves
        k, v = (each.repeat_interleave(HEADS // heads, 1) for each in (k, v))
        h = F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, scale=0.3)
        return h, torch.autograd.grad(h, leaves, g.to(h.dtype))

    expected, theirs = by_torch(leaves, mask)
    assert torch.equal(output, expected)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    is_added = mask is not None and mask.dtype != torch.bool
    exact = by_torch(wide, mask.double() if is_added else mask)[1]
    assert error(got, exact) <= 1.1 * error(theirs, exact)


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"heads": 1}, True),
        ({"heads": 3}, False),
        ({"dtype": torch.float32}, False),
        ({"tokens": 65}, False),
    ],
    ids=str,
)
def test_which_operands_it_takes(change, taken):
    leaves, _ = operands(**change)
    assert takes(*leaves, None) is taken
    with torch.no_grad():
        assert not takes(*leaves, None)
    assert not takes(*leaves, torch.zeros(1, 1, TOKENS, TOKENS).requires_grad_())

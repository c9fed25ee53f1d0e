"""Products with a weight by oneDNN and by MKL: the same numbers, and which of them is taken."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lorakit.ops import weight_products
from lorakit.ops.weight_products import (
    backward_product,
    forward_product,
    frozen_linear,
    padded_rows,
    padded_tokens,
)
from tolerances import TOLERANCE

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch was built without oneDNN"
)
SHAPES = ((4, 3, 5), (7, 64, 48), (300, 130, 257))


class Calls(list):
    """Notes that oneDNN was called, which no dispatch mode may see."""

    def __call__(self, x, *rest):
        self.append(tuple(x.shape))
        return self.product(x, *rest)


@pytest.fixture
def calls(monkeypatch):
    """Let oneDNN compute products of all sizes, whoever made the processor."""
    noted = Calls()
    noted.product = weight_products._linear
    monkeypatch.setattr(weight_products, "onednn_is_quicker", lambda: True)
    monkeypatch.setattr(weight_products, "LEAST_OPERATIONS", 1)
    monkeypatch.setattr(weight_products, "_linear", noted)
    return noted


def largest_error(got, x, W, bias=None):
    """Return the largest error of x Wᵀ + b, as a share of the sum of absolute products."""
    exact = nn.functional.linear(x.double(), W.double(), None if bias is None else bias.double())
    sizes = x.double().abs() @ W.double().abs().t()
    return ((got.double() - exact).abs() / sizes).max()


@pytest.mark.parametrize(("tokens", "width", "out"), SHAPES)
@pytest.mark.parametrize("is_turned", [False, True], ids=["as it lies", "transposed"])
def test_both_products_are_those_of_float64(calls, tokens, width, out, is_turned):
    W = torch.randn(width, out).t() if is_turned else torch.randn(out, width)
    x, g, bias = torch.randn(tokens, width), torch.randn(tokens, out), torch.randn(out)
    tolerance = TOLERANCE[torch.float32]
    assert largest_error(forward_product(x, W), x, W) <= tolerance
    assert largest_error(forward_product(x, W, bias), x, W, bias) <= 2 * tolerance
    assert largest_error(backward_product(g, W), g, W.t()) <= tolerance
    total = torch.randn(tokens, width)
    summed = backward_product(g, W, total.clone())
    torch.testing.assert_close(summed, total + g @ W, rtol=1e-4, atol=1e-4)
    assert len(calls) == 4


def test_a_product_is_added_in_place(calls, monkeypatch):
    g, W, total = torch.randn(8, 4), torch.randn(4, 16), torch.randn(8, 16)
    expected = total + g @ W
    assert backward_product(g, W, total) is total and len(calls) == 1
    torch.testing.assert_close(total, expected)
    monkeypatch.setattr(weight_products, "LEAST_OPERATIONS", 8 * 16 * 4 + 1)
    assert backward_product(g, W, total) is total and len(calls) == 1
    torch.testing.assert_close(total, expected + g @ W)


def test_rows_of_any_shape(calls):
    x, W = torch.randn(2, 3, 4, 8), torch.randn(6, 8)
    assert forward_product(x, W).shape == (2, 3, 4, 6)
    torch.testing.assert_close(forward_product(x, W), nn.functional.linear(x, W))
    assert calls


def test_a_frozen_layer_passes_its_gradient_on(calls):
    x, W, bias = torch.randn(9, 8, requires_grad=True), torch.randn(6, 8), torch.randn(6)
    weights = torch.randn(9, 6)
    (frozen_linear(x, W, bias) * weights).sum().backward()
    torch.testing.assert_close(x.grad, weights @ W)
    assert len(calls) == 2


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_what_onednn_cannot_or_need_not_compute_is_torch_s(calls, monkeypatch):
    x, W = torch.randn(8, 16), torch.randn(4, 16)
    trained = W.clone().requires_grad_()
    forward_product(x, trained).sum().backward()
    assert trained.grad is not None
    for dtype in (torch.float64, torch.bfloat16):
        forward_product(x.to(dtype), W.to(dtype))
    forward_product(x[:3], W)
    forward_product(torch.randn(16, 8).t(), W)
    forward_product(x, torch.randn(4, 32)[:, ::2])
    forward_product(torch.randn(0, 16), W)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert forward_product(x, W).dtype == torch.bfloat16
    with Mode():
        forward_product(x, W)
        backward_product(torch.randn(8, 4), W)
    with pytest.warns(DeprecationWarning):
        torch.jit.trace(lambda x: forward_product(x, W), (x,), check_trace=False)
    torch.func.vmap(forward_product, (0, None))(x[None], W)
    monkeypatch.setattr(weight_products, "LEAST_OPERATIONS", 8 * 16 * 4 + 1)
    forward_product(x, W)
    assert calls == []


@pytest.mark.parametrize(
    "bias", [torch.randn(12)[::2], torch.randn(1).expand(6), torch.randn(1), torch.randn(())]
)
def test_a_bias_that_onednn_would_misread_is_torch_s(calls, bias):
    x, W = torch.randn(9, 8), torch.randn(6, 8)
    expected = nn.functional.linear(x, W, bias)
    assert torch.equal(frozen_linear(x, W, bias), expected)
    assert torch.equal(forward_product(x, W, bias), expected)
    assert calls == []


def test_torch_refuses_shapes_that_do_not_fit(calls):
    for product in (frozen_linear, forward_product):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            product(torch.randn(9, 7), torch.randn(6, 8))
        with pytest.raises(RuntimeError, match="must match the existing size"):
            product(torch.randn(9, 8), torch.randn(6, 8), torch.randn(5))
    assert calls == []


@pytest.mark.parametrize(("vendor", "expected"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_onednn_is_taken_where_mkl_does_not_know_the_processor(monkeypatch, vendor, expected):
    monkeypatch.setattr(weight_products, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    weight_products.onednn_is_quicker.cache_clear()
    try:
        assert weight_products.onednn_is_quicker() is expected
        weight_products.onednn_is_quicker.cache_clear()
        monkeypatch.setenv("LORAKIT_ONEDNN", "0")
        assert not weight_products.onednn_is_quicker()
    finally:
        weight_products.onednn_is_quicker.cache_clear()


def test_the_same_product_has_the_same_bits_wherever_it_lies(calls):
    """A resumed run computes what the run before it did, at other addresses."""
    x, W, g = torch.randn(37, 256), torch.randn(130, 256), torch.randn(37, 130)
    forward, backward = forward_product(x, W), backward_product(g, W)
    for offset in (1, 5, 8):
        moved = [torch.empty(t.numel() + offset)[offset:].view(t.shape) for t in (x, W, g)]
        for to, original in zip(moved, (x, W, g), strict=True):
            to.copy_(original)
        assert torch.equal(forward_product(moved[0], moved[1]), forward)
        assert torch.equal(backward_product(moved[2], moved[1]), backward)
    assert calls


@pytest.mark.parametrize("tokens", [4, 32, 33, 100, 1025])
def test_rows_that_are_added_do_not_show(calls, tokens):
    x, W, bias = torch.randn(tokens, 2, 8), torch.randn(6, 8), torch.randn(6)
    x.requires_grad_()
    output = frozen_linear(x, W, bias)
    assert output.shape == (tokens, 2, 6) and output.is_contiguous()
    exact = nn.functional.linear(x, W, bias)
    torch.testing.assert_close(output, exact)
    output.relu_().sum().backward()  # in place, as after a layer of torch
    torch.testing.assert_close(x.grad, (exact > 0).float() @ W)


def test_products_of_many_lengths_are_few(calls, monkeypatch):
    rows, product = set(), torch.ops.mkldnn._linear_pointwise.default

    class Noted:
        @staticmethod
        def default(x, *rest):
            rows.add(len(x))
            return product(x, *rest)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", Noted)
    W = torch.randn(3, 2)
    for tokens in range(4, 2000):
        forward_product(torch.randn(tokens, 2), W)
    assert len(rows) <= 32 + 6 * 16
    assert all(padded_tokens(n) <= 1.07 * n for n in range(1, 5000))


def test_rows_are_added_only_where_onednn_multiplies(calls, monkeypatch):
    x = torch.randn(33, 2)
    for dtype in (torch.float32, torch.bfloat16):
        padded = padded_rows(x.to(dtype), dtype)
        assert padded.shape == (64, 2) and padded[33:].abs().max() == 0
        assert torch.equal(padded[:33], x.to(dtype))
    assert padded_rows(x, torch.bfloat16).shape == (64, 2), "as under autocast"
    same = (x[:32], torch.float32), (x[:0], torch.float32), (x.double(), torch.float64)
    for rows, dtype in (*same, (x.to("meta"), torch.bfloat16)):
        assert padded_rows(rows, dtype) is rows
    monkeypatch.setattr(weight_products, "onednn_is_quicker", lambda: False)
    assert padded_rows(x, torch.float32) is x

"""Cross-entropies equal torch's, with and without the compiled function."""

import pytest
import torch
from torch.nn import functional as F

from allocations import allocations_of
from lorakit.ops import cross_entropy
from lorakit.ops.cross_entropy import (
    cross_entropies,
    cross_entropies_,
    frozen_linear_cross_entropies,
    suits_frozen_linear,
)
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(params=["compiled", "in torch"], autouse=True)
def way(request, monkeypatch):
    if request.param == "in torch":
        monkeypatch.setattr(cross_entropy, "_kernel", lambda logits: None)
    return request.param


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16, torch.float64], ids=str)
def test_of_logits(dtype):
    logits, targets = (4 * torch.randn(6, 50)).to(dtype), torch.randint(0, 50, (6,))
    leaf = logits.double().clone().requires_grad_()
    expected = F.cross_entropy(leaf, targets, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), leaf)
    before = logits.clone()
    losses = cross_entropies(logits, targets)
    wide = torch.promote_types(dtype, torch.float32)
    assert losses.dtype == wide and torch.equal(logits, before)
    assert largest_error(losses, expected) <= TOLERANCE[wide]
    assert largest_error(cross_entropies_(logits, targets), expected) <= TOLERANCE[wide]
    assert logits.dtype == dtype and largest_error(logits, gradient) <= TOLERANCE[dtype]


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_of_a_frozen_layer(dtype, has_bias):
    hidden = torch.randn(13, 8).to(dtype).requires_grad_()
    weight = torch.randn(30, 8).to(dtype)
    bias = torch.randn(30).to(dtype) if has_bias else None
    targets, weights = torch.randint(0, 30, (13,)), torch.rand(13)
    losses = frozen_linear_cross_entropies(hidden, weight, bias, targets)
    (weights * losses).sum().backward()
    leaf = hidden.detach().double().requires_grad_()
    logits = F.linear(leaf, weight.double(), None if bias is None else bias.double())
    expected = F.cross_entropy(logits, targets, reduction="none")
    (weights * expected).sum().backward()
    assert largest_error(losses, expected) <= TOLERANCE[dtype]
    assert largest_error(hidden.grad, leaf.grad) <= GRADIENT_TOLERANCE[dtype]
    with torch.no_grad():
        again = frozen_linear_cross_entropies(hidden, weight, bias, targets)
    assert not again.requires_grad
    assert largest_error(again, expected) <= TOLERANCE[dtype]


def test_no_tokens():
    hidden, targets = torch.randn(0, 8, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    losses = frozen_linear_cross_entropies(hidden, torch.randn(30, 8), None, targets)
    losses.sum().backward()
    assert losses.shape == (0,) and hidden.grad.shape == (0, 8)


def test_all_targets_must_be_in_the_vocabulary():
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        cross_entropies_(torch.randn(2, 30), torch.tensor([0, 30]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_the_logits_have_their_size(way, dtype):
    hidden, weight = torch.randn(64, 4, dtype=dtype, requires_grad=True), torch.randn(5000, 4)
    weight, targets = weight.to(dtype), torch.randint(0, 5000, (64,))

    def step():
        frozen_linear_cross_entropies(hidden, weight, None, targets).sum().backward()

    copies = 1 if way == "compiled" or dtype == torch.float32 else 3  # in 32 bits too
    assert allocations_of(step).peak <= 1.3 * copies * 64 * 5000 * dtype.itemsize


def test_what_it_is_for():
    hidden, weight = torch.randn(3, 8), torch.randn(30, 8)
    assert suits_frozen_linear(hidden, weight)
    assert suits_frozen_linear(hidden, weight.bfloat16())
    assert not suits_frozen_linear(hidden.double(), weight.double())
    assert not suits_frozen_linear(hidden.to("meta"), weight.to("meta"))
    assert not torch.vmap(lambda h: h * suits_frozen_linear(h, weight))(hidden[None]).any()
    compiled = torch.compile(lambda h: h * suits_frozen_linear(h, weight), backend="eager")
    assert not compiled(hidden).any()

"""Operands are taken apart into constants and tensors, and put together again."""

import pytest
import torch

from lorakit.errors import ShapeError
from lorakit.ops.operands import (
    LinearGradients,
    LinearOperands,
    LowRankTerm,
    RowScale,
    TermGradients,
    check_shapes,
    flat_gradients,
    flatten,
    needs_of,
    unflatten,
)

SEED = torch.tensor(3)
SCALE = RowScale(torch.rand(4), torch.rand(4))


def term(r=2, **options):
    return LowRankTerm(torch.randn(r, 6), torch.randn(4, r), 0.5, **options)


def layers():
    return [
        LinearOperands(torch.randn(4, 6), None, [term(drop_probability=0.1, seed=SEED)]),
        LinearOperands(torch.randn(4, 6), torch.randn(4), [term(row_scale=SCALE)]),
        LinearOperands(torch.randn(4, 6), None, [term(drop_probability=0.2, seed=SEED), term()]),
        LinearOperands(torch.randn(4, 6), None, []),
    ]


def test_there_and_back():
    given = layers()
    spec, tensors = flatten(given)
    hash(spec)  # an autograd node and a compiled graph keep it as a constant
    assert sum(tensor is SEED for tensor in tensors) == 1
    for one, other in zip(given, unflatten(spec, tensors), strict=True):
        assert one.W0 is other.W0 and one.bias is other.bias
        for mine, theirs in zip(one.terms, other.terms, strict=True):
            assert mine.A is theirs.A and mine.B is theirs.B and mine.seed is theirs.seed
            assert mine[2:4] == theirs[2:4]
            assert (mine.row_scale or ()) == (theirs.row_scale or ())


def test_needs_and_gradients_have_the_order_of_the_tensors():
    given = layers()
    spec, tensors = flatten(given)
    wanted = given[1].terms[0]
    flags = [t is given[0].W0 or t is wanted.B or t is SCALE.lengths for t in tensors]
    needs = needs_of(spec, flags)
    assert [need.W0 for need in needs] == [True, False, False, False]
    assert needs[1].terms[0] == (False, True, True)
    gradients = [LinearGradients(None, None, [TermGradients()] * len(la.terms)) for la in given]
    gradients[1] = gradients[1]._replace(terms=[TermGradients(None, wanted.B, SCALE.lengths)])
    flat = flat_gradients(spec, gradients, len(tensors))
    assert len(flat) == len(tensors)
    assert all(g is None or g is t for g, t in zip(flat, tensors, strict=True))
    assert sum(g is not None for g in flat) == 2


def test_several_terms_with_a_scale_are_not_one_product():
    W0 = torch.randn(4, 6)
    assert LinearOperands(W0, None, [term(row_scale=SCALE)]).is_one_product
    assert LinearOperands(W0, None, [term(), term()]).is_one_product
    assert not LinearOperands(W0, None, [term(), term(row_scale=SCALE)]).is_one_product
    assert LinearOperands(W0, None, [term(row_scale=SCALE)]).row_scale is SCALE
    assert LinearOperands(W0, None, [term()]).row_scale is None


@pytest.mark.parametrize(
    ("width", "r", "text"), [(5, 2, r"\(3, 5\), expected its last"), (6, None, "do not fit")]
)
def test_shapes_that_do_not_fit(width, r, text):
    wrong = term() if r else LowRankTerm(torch.randn(2, 6), torch.randn(3, 2), 1.0)
    layer = LinearOperands(torch.randn(4, 6), None, [wrong])
    with pytest.raises(ShapeError, match=text):
        check_shapes(torch.Size((3, width)), layer)

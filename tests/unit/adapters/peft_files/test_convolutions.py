"""Kernels in PEFT's files, matrices here: or an error that says what they are."""

import pytest
import torch

from lorakit.adapters.peft_files.convolutions import to_kernels, to_matrices
from lorakit.adapters.peft_files.format import parse_keys, tensor_keys
from lorakit.errors import AdapterFileError
from lorakit.layers import KernelShape

P = "base_model.model.q."
SHAPES = [
    KernelShape(3, (5,)),
    KernelShape(3, (2, 3)),
    KernelShape(3, (1, 1)),
    KernelShape(4, (1, 2, 3)),
    KernelShape(4, (3,), 2),
    KernelShape(4, (3, 3), 4),
]


def kernels(shape, r=4, out=8):
    generator = torch.Generator().manual_seed(1)
    A = torch.randn(r, shape.channels, *shape.kernel, generator=generator)
    B = torch.randn(out, r // shape.groups, *(1,) * len(shape.kernel), generator=generator)
    return A, B


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_there_and_back(shape):
    A, B = kernels(shape)
    matrices = to_matrices(A, B)
    assert matrices[0].shape == (4, shape.columns) and matrices[1].shape == (8, 4)
    assert matrices[2] == shape
    assert all(map(torch.equal, to_kernels(*matrices), (A, B)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_keys_and_a_magnitude(shape):
    A, B, _ = to_matrices(*kernels(shape))
    keys = tensor_keys(
        {"q": (A, B)}, {}, frozenset(), {}, {"q.magnitude": torch.ones(8)}, {"q": shape}
    )
    assert keys[f"{P}lora_magnitude_vector"].shape == (1, 8, *(1,) * len(shape.kernel))
    parsed = parse_keys(keys, "here")
    assert parsed.convolutions == {"q": shape} and parsed.companions["q.magnitude"].shape == (8,)
    assert all(map(torch.equal, parsed.factors["q"], (A, B)))


def test_matrices_stay_matrices():
    A, B = torch.ones(2, 4), torch.ones(3, 2)
    got = to_matrices(A, B)
    assert got[0] is A and got[1] is B and got[2] is None


@pytest.mark.parametrize(
    ("A", "B"),
    [
        ((4, 3, 3), (8, 4)),
        ((4, 3), (8, 4, 1)),
        ((4, 3, 3), (8, 4, 1, 1)),
        ((4, 3, 3, 3), (8, 4, 2, 1)),
        ((4, 3, 3, 3), (8, 2, 2, 1)),
        ((4, 3, 3, 3), (8, 3, 1, 1)),
        ((4, 3, 3, 3), (8, 0, 1, 1)),
        ((4, 3, 3, 3), (9, 2, 1, 1)),
        ((4, 3, 3, 3), (8, 8, 1, 1)),
        ((4, 3, 1, 1, 1, 1), (8, 4, 1, 1, 1, 1)),
        ((4,), (8,)),
    ],
)
def test_what_is_neither_is_refused(A, B):
    given = {f"{P}lora_A.weight": torch.ones(A), f"{P}lora_B.weight": torch.ones(B)}
    with pytest.raises(AdapterFileError, match="expected a matrix or the kernels of a convolution"):
        parse_keys(given, "here")


def test_blocks_that_are_none_are_refused():
    shape = KernelShape(4, (3,), 2)
    with pytest.raises(AdapterFileError, match="not zero outside one block per group"):
        to_kernels(torch.ones(4, 12), torch.ones(8, 4), shape)


def test_factors_in_another_order_in_memory():
    A, B, shape = to_matrices(*kernels(KernelShape(3, (2, 3))))
    got = to_kernels(A.t().contiguous().t(), B.t().contiguous().t(), shape)
    assert all(map(torch.equal, got, to_kernels(A, B, shape)))

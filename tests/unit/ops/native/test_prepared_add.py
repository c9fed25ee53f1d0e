"""A prepared addition gives what the products that are described at each call give."""

import pytest
import torch

from lorakit.ops.native import cpu_kernels
from lorakit.ops.native.cpu_kernels import NO_DROPOUT, Group, Groups
from lorakit.ops.native.prepared_add import PreparedAdd, PreparedTerm

KERNELS = cpu_kernels.load()
pytestmark = pytest.mark.skipif(KERNELS is None, reason="no compiled products")
DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture
def factors():
    torch.manual_seed(0)
    return torch.randn(3, 12), torch.randn(10, 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_group_is_added_whatever_the_addresses(factors, dtype):
    A, B = factors
    down = Groups([Group(0, 2, A, 3), Group(4, 9, 2 * A, 3)])
    up = Groups([Group(0, 2, B, 3, 0.5), Group(4, 9, B, 3)])
    add = PreparedAdd(KERNELS, dtype, (9, 12, 10), down, up)
    for _ in range(2):
        x, h = torch.randn(9, 12).to(dtype), torch.randn(9, 10).to(dtype)
        expected = h.clone()
        KERNELS.add_groups_(expected, x, down, up)
        add.add_(h, x)
        assert torch.equal(h, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_term_takes_any_number_of_tokens_until_its_factors_move(factors, dtype):
    A, B = factors
    term = PreparedTerm(KERNELS, A, B, 0.5, dtype)
    for tokens in (1, 5, 1):
        x, h = torch.randn(tokens, 12).to(dtype), torch.randn(tokens, 10).to(dtype)
        expected = h.clone()
        KERNELS.add_(expected, x, A, B, 0.5, NO_DROPOUT)
        assert term.add_(h, x, tokens, A, B)
        assert torch.equal(h, expected)
    before = h.clone()
    assert not term.add_(h, x, 1, A, B.clone())
    A.data = A.data.clone()
    assert not term.add_(h, x, 1, A, B)
    assert torch.equal(h, before)

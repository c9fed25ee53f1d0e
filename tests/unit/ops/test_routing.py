"""Tokens brought to their experts and back: sums over the pairs, and gradients that repeat."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from lorakit.ops.routing import Route

TOKENS, TOP_K, EXPERTS = 6, 2, 4


def index_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(TOKENS, EXPERTS, generator=generator).topk(TOP_K).indices


def test_pairs_lie_expert_after_expert_and_come_back():
    index = index_of()
    route = Route(index, EXPERTS)
    hidden = torch.randn(TOKENS, 3, dtype=torch.float64)
    pairs = route.dispatch(hidden)
    assert route.counts == [int((index == expert).sum()) for expert in range(EXPERTS)]
    begin = 0
    for expert, count in enumerate(route.counts):
        tokens = torch.where(index == expert)[0]
        assert torch.equal(pairs[begin : begin + count], hidden[tokens])
        begin += count
    assert torch.equal(route.combine(pairs), TOP_K * hidden)
    assert torch.equal(route.sort(index).sort().values, route.sort(index))


def test_gradients_are_those_of_finite_differences():
    route = Route(index_of(), EXPERTS)
    hidden = torch.randn(TOKENS, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(TOKENS * TOP_K, 1, dtype=torch.float64, requires_grad=True)

    def run(hidden, scale):
        return route.combine(route.dispatch(hidden) * scale)

    assert torch.autograd.gradcheck(run, (hidden, scale))


def test_experts_of_other_processes_come_last_and_are_not_counted():
    index = index_of()
    index[:, 1] = EXPERTS
    route = Route(index, EXPERTS)
    assert sum(route.counts) == TOKENS
    assert bool((route.sort(index)[TOKENS:] == EXPERTS).all())


@pytest.mark.parametrize("tokens", [0, 1, TOKENS])
def test_without_numbers_the_pairs_are_spread_evenly(tokens):
    with FakeTensorMode():
        route = Route(torch.zeros(tokens, TOP_K, dtype=torch.long), EXPERTS)
    assert sum(route.counts) == tokens * TOP_K
    assert max(route.counts) - min(route.counts) <= 1

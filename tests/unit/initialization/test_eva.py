import torch

from lorakit.initialization import FreshUpdate, initialization_of
from lorakit.initialization.eva import redistribute_ranks
from lorakit.layers import LowRankUpdate


def test_ranks_go_to_what_explains_most():
    shares = {
        "a": torch.tensor([0.6, 0.3, 0.05, 0.01]),
        "b": torch.tensor([0.9, 0.02, 0.01, 0.0]),
        "c": torch.tensor([0.9, 0.02, 0.01, 0.0]),
    }
    leaders = {"a": "a", "b": "c", "c": "c"}
    ranks, most = dict.fromkeys(shares, 2), dict.fromkeys(shares, 3)
    given = redistribute_ranks(shares, leaders, ranks, most)
    # 0.9, 0.9, 0.6, 0.3, 0.05 and one 0.02: b's in order, which its leader c gets.
    assert given == {"a": 3, "b": 1, "c": 2}
    capped = redistribute_ranks(shares, leaders, ranks, most | {"a": 2})
    assert capped == {"a": 2, "b": 2, "c": 2}


def test_a_gets_the_first_components_and_b_is_zero():
    update = LowRankUpdate(torch.empty(2, 5), torch.empty(3, 2), 1.0)
    components = torch.linalg.qr(torch.randn(5, 5))[0]
    A, B = initialization_of("eva").factors(FreshUpdate(update, "B", lambda: components))
    assert torch.equal(A, components[:2]) and B.shape == (3, 2) and not B.any()

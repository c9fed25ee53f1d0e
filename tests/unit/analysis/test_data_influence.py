"""DataInf's closed form against its formula, written out with matrices."""

import pytest
import torch

from lorakit.analysis.data_influence import data_influence

N, SHAPES = 7, {"a.lora_A": (2, 5), "a.lora_B": (4, 2)}


@pytest.fixture
def drawn():
    return [{name: torch.randn(shape) for name, shape in SHAPES.items()} for _ in range(N + 1)]


def by_matrices(examples, query, damping):
    scores = torch.zeros(len(examples), dtype=torch.float64)
    for name in query:
        G = torch.stack([one[name].flatten() for one in examples]).double()
        v = query[name].flatten().double()
        d = len(v)
        damp = damping * G.square().sum(1).mean() / d
        parts = [torch.linalg.inv(torch.outer(g, g) + damp * torch.eye(d)) for g in G]
        scores += G @ (torch.stack(parts).mean(0) @ v)
    return scores


@pytest.mark.parametrize("damping", [0.1, 2.0])
def test_it_is_the_mean_of_the_inverses_of_each_example(drawn, damping):
    *examples, query = drawn
    found = data_influence(examples, query, damping)
    assert torch.allclose(found, by_matrices(examples, query, damping), rtol=1e-4, atol=1e-5)


def test_an_example_like_the_question_helps_and_its_opposite_harms(drawn):
    *examples, query = drawn
    examples[0] = query
    examples[1] = {name: -g for name, g in query.items()}
    found = data_influence(examples, query)
    assert found.argmax() == 0 and found.argmin() == 1
    assert found[0].item() == pytest.approx(-found[1].item(), rel=1e-4)


def test_layers_without_gradients_and_no_examples_give_no_influence(drawn):
    *examples, query = drawn
    zero = [{**one, "a.lora_A": torch.zeros(2, 5)} for one in examples]
    found = data_influence(zero, query)
    alone = [{"a.lora_B": one["a.lora_B"]} for one in examples]
    assert torch.equal(found, data_influence(alone, {"a.lora_B": query["a.lora_B"]}))
    assert data_influence([], query).shape == (0,)

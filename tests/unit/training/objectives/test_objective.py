"""What objectives have in common: sums over the examples that count."""

import torch

from lorakit.training.objectives.objective import Answers, chosen_nll, sum_and_count


def test_only_examples_that_count_are_added():
    values, counts = torch.tensor([1.0, 5.0]), torch.tensor([True, False])
    assert sum_and_count(values, counts).tolist() == [1, 1]


def test_the_likelihood_is_a_mean_over_tokens():
    answers = Answers(
        torch.tensor([[-4.0, -1.0], [-9.0, -1.0]]),
        torch.tensor([[2.0, 1.0], [3.0, 1.0]]),
        torch.tensor([-2.0, -7.0]),
        torch.tensor([1.0, 1.0]),
        torch.tensor([True, False]),
    )
    assert chosen_nll(answers).item() == 2
    assert chosen_nll(answers, with_prompts=True).item() == 2
    assert answers.means.tolist() == [[-2, -1], [-3, -1]]

"""Trained tokens of a file or another adapter, compared without a model."""

import pytest
import torch

from lorakit import Adapter, LoraConfig
from lorakit.adapters.trained_tokens import check_trained_tokens, differing_tokens
from lorakit.errors import AdapterFileError

ROWS = {"embed": torch.ones(2, 4)}


@pytest.mark.parametrize(
    ("indices", "rows", "problem"),
    [
        (None, ROWS, "it has trained rows of embed, but no indices of them"),
        ([1, 2], {}, "it has indices of trained tokens, but no rows"),
        ([1, 2], {"embed": torch.ones(2)}, "the rows of embed have shape (2,), not a matrix"),
        ({"embed": [1, 2, 3]}, ROWS, "embed has 2 rows for 3 indices"),
    ],
)
def test_a_file_that_contradicts_its_configuration_is_refused(indices, rows, problem):
    with pytest.raises(AdapterFileError) as caught:
        check_trained_tokens(LoraConfig(trainable_token_indices=indices), rows, "x.safetensors")
    assert str(caught.value) == (
        f"trainable_token_indices in x.safetensors: {problem}. The two files do not belong "
        "together; save the adapter again."
    )


@pytest.mark.parametrize(
    ("indices", "rows"), [(None, {}), ([5, 1], ROWS), ({"embed": [5, 1]}, ROWS)]
)
def test_what_belongs_together_is_taken(indices, rows):
    check_trained_tokens(LoraConfig(trainable_token_indices=indices), rows, "x.safetensors")


def tokens(indices, rows=ROWS):
    return Adapter(LoraConfig(trainable_token_indices=indices), {}, trained_tokens=rows)


@pytest.mark.parametrize(
    ("new", "problems"),
    [
        (tokens([5, 1]), []),
        (tokens([1, 5]), ["it trains other tokens of embed, or in another order"]),
        (tokens([5, 1], {"embed": torch.ones(2, 3)}), ["it trains other tokens of embed, or in"]),
        (
            tokens([5, 1], {"head": torch.ones(2, 4)}),
            ["it trains tokens of head, which 'mine' does not", "it lacks the tokens of embed"],
        ),
    ],
)
def test_other_tokens_are_a_problem_each(new, problems):
    found = differing_tokens(tokens([5, 1]), new, "mine")
    assert len(found) == len(problems)
    assert all(text.startswith(start) for text, start in zip(found, problems, strict=True))

"""The form of what a block returns."""

import pytest
import torch

from lorakit.training.frozen_part.block_output import BlockOutput

STATES, OTHER = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)


@pytest.mark.parametrize(
    ("output", "made"),
    [(STATES, OTHER), ((STATES,), (OTHER,)), ((STATES, STATES, 1), (OTHER, None, None))],
    ids=["tensor", "tuple of one", "tuple of three"],
)
def test_an_output_of_the_same_form_is_made(output, made):
    form = BlockOutput.of(output)
    assert form.hidden_states(output) is STATES
    got = form.made_of(OTHER)
    assert type(got) is type(made)
    assert got is OTHER or (got[0] is OTHER and got[1:] == made[1:])


@pytest.mark.parametrize("output", [{"hidden_states": STATES}, (), (None, STATES), None])
def test_what_does_not_begin_with_hidden_states_has_no_form(output):
    assert BlockOutput.of(output) is None

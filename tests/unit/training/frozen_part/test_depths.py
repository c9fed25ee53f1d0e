"""Which layers are the upper ones, and how many a model has."""

import pytest

from lorakit.errors import ConfigError
from lorakit.training.frozen_part.depths import count_layers, layers_at
from tiny_models.architectures import llama, t5


@pytest.mark.parametrize(
    ("depth", "layers", "expected"),
    [
        ("all", 3, (0, 1, 2)),
        ("upper half", 3, (2,)),
        ("upper half", 4, (2, 3)),
        ("upper quarter", 3, (2,)),
        ("upper quarter", 8, (6, 7)),
    ],
)
def test_the_upper_layers_are_at_least_one(depth, layers, expected):
    assert layers_at(depth, layers) == expected


def test_a_model_has_the_layers_of_its_only_list():
    assert count_layers(llama(num_hidden_layers=3)) == 3
    with pytest.raises(ConfigError, match="expected one"):
        count_layers(t5())

"""Bases whose positions depend on the longest row of a batch."""

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config

from lorakit.models.position_limits import beyond_limits, position_limits

LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0}
LONGROPE |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
LONGROPE |= {"original_max_position_embeddings": 16}
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "max_position_embeddings": 64}
SIZES |= {"pad_token_id": 0}


def test_only_longrope_has_a_limit():
    assert position_limits(None) == ()
    assert position_limits(LlamaConfig(**SIZES)) == ()
    assert position_limits(Gemma3TextConfig()) == ()
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert position_limits(LlamaConfig(**SIZES, rope_parameters=dynamic)) == ()
    long = Phi3Config(**SIZES, rope_parameters=LONGROPE, original_max_position_embeddings=16)
    assert position_limits(long) == (16,)


@pytest.mark.parametrize(
    ("inputs", "beyond"),
    [
        ({"input_ids": torch.ones(2, 16)}, (False, True)),
        ({"inputs_embeds": torch.ones(2, 17, 4)}, (True, True)),
        ({"input_ids": torch.ones(1, 40), "position_ids": torch.tensor([[0, 3]])}, (False, False)),
    ],
    ids=["at the limit", "embeddings", "positions of packed texts"],
)
def test_a_batch_exceeds_a_limit_by_its_longest_row(inputs, beyond):
    assert beyond_limits(inputs, (16, 8)) == beyond
    assert beyond_limits(inputs, ()) == ()

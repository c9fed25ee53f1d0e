"""Output projections of attentions: their paths, and the patterns that files give them."""

import pytest
from torch import nn

from lorakit.config import LoraConfig
from lorakit.injection.selection.attention import (
    attention_obstacle,
    attention_outputs,
    is_output,
    with_output_patterns,
    with_outputs,
    without_output_patterns,
)
from tiny_models import Encoder

ATTENTIONS = [f"encoder.layers.{i}.self_attn" for i in range(2)]
OUTPUTS = {f"{path}.out_proj": path for path in ATTENTIONS}


def test_outputs_follow_their_attentions():
    modules = dict(Encoder().named_modules())
    assert attention_outputs(modules) == OUTPUTS
    assert all(is_output(modules[path]) for path in OUTPUTS)
    assert not is_output(nn.Linear(2, 2))
    assert attention_outputs({"": nn.MultiheadAttention(4, 2)}) == {"out_proj": ""}
    first, second = ATTENTIONS
    assert with_outputs([first, "score"], OUTPUTS) == [first, f"{first}.out_proj", "score"]
    assert with_outputs([second], {}) == [second]


@pytest.mark.parametrize("options", [{}, {"kdim": 4, "vdim": 4}, {"bias": False}])
def test_one_input_projection_can_be_adapted(options):
    assert attention_obstacle(nn.MultiheadAttention(4, 2, **options)) is None
    three = nn.MultiheadAttention(4, 2, **(options | {"vdim": 3}))
    assert "three input projections" in attention_obstacle(three)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank_pattern": {"layers.1.self_attn": 2}, "alpha_pattern": {"self_attn": 5}},
        {"rank_pattern": {"out_proj": 1}, "alpha_pattern": {"out_proj": 7}},
    ],
    ids=["plain", "of the attention", "of the output"],
)
def test_an_output_has_the_rank_of_its_attention_and_twice_its_alpha(options):
    config = LoraConfig(r=4, lora_alpha=3, **options)
    made = with_output_patterns(config, OUTPUTS)
    for output, attention in OUTPUTS.items():
        assert made.rank_for(output) == config.rank_for(attention)
        assert made.alpha_for(output) == 2 * config.alpha_for(attention)
        assert made.rank_for(attention) == config.rank_for(attention)
        assert made.alpha_for(attention) == config.alpha_for(attention)
    assert with_output_patterns(made, OUTPUTS) is made
    assert without_output_patterns(made, OUTPUTS) == config

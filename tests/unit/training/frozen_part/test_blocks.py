"""Which blocks are frozen, what drops in them, and what their output depends on."""

import pytest
import torch
from torch import nn

from lorakit import LoraConfig, add_adapter
from lorakit.errors import ConfigError
from lorakit.training.frozen_part.blocks import (
    BlockOutput,
    count_layers,
    find_frozen_blocks,
    has_dropout,
    identity_of,
    keeping_in_evaluation,
    layers_at,
)
from tiny_models.architectures import bert, gpt2, llama, t5


def adapted(model, layers, **config):
    model.requires_grad_(False)
    chosen = {"layers_to_transform": layers, "layers_pattern": None} if layers else {}
    add_adapter(model, LoraConfig(r=2, target_modules="all-linear", **chosen, **config))
    return model


@pytest.mark.parametrize(
    ("build", "path"),
    [(llama, "model.layers"), (gpt2, "transformer.h"), (bert, "encoder.layer")],
    ids=["llama", "gpt2", "bert"],
)
def test_blocks_below_the_first_adapted_one_are_frozen(build, path):
    model = adapted(build(), (1,))
    found = find_frozen_blocks(model)
    assert (found.depth, found.total) == (1, 2) and found.path.endswith(path)
    assert found.frozen[0] is model.get_submodule(f"{found.path}.0")


def test_a_model_adapted_from_below_has_none():
    assert find_frozen_blocks(adapted(llama(), None)) is None
    assert find_frozen_blocks(adapted(llama(), (0,))) is None


def test_trained_embeddings_leave_none():
    model = adapted(llama(), (1,), modules_to_save=("embed_tokens",))
    assert find_frozen_blocks(model) is None


def test_an_encoder_with_a_decoder_has_none():
    assert find_frozen_blocks(adapted(t5(), (1,))) is None


def test_the_identity_depends_on_weights_below_and_on_nothing_above():
    torch.manual_seed(0)
    model = adapted(llama(), (1,))
    blocks = find_frozen_blocks(model)
    before = identity_of(model, blocks)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.add_(1)
        model.model.norm.weight.add_(1)
    assert identity_of(model, blocks) == before
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    assert identity_of(model, blocks) != before


def test_dropout_stays_off_below_while_the_model_trains():
    model = adapted(bert(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3), (1,))
    blocks = find_frozen_blocks(model)
    assert has_dropout(model, blocks)
    ids = torch.tensor([[5, 6, 7]])
    seen = []
    blocks.frozen[0].register_forward_hook(lambda module, args, output: seen.append(output))
    with keeping_in_evaluation(model, blocks):
        for _ in range(2):
            model.train()
            model(input_ids=ids)
            assert model.encoder.layer[1].training if hasattr(model, "encoder") else True
    first, second = (output[0] if isinstance(output, tuple) else output for output in seen)
    assert torch.equal(first, second)
    assert blocks.frozen[0].training, "as before, after the block"


def test_a_model_without_dropout_has_none():
    model = adapted(llama(), (1,))
    assert not has_dropout(model, find_frozen_blocks(model))


def test_a_model_is_asked_by_its_modules_and_its_settings():
    assert not has_dropout(llama())
    assert has_dropout(nn.Sequential(nn.Dropout(0.1)))
    model = bert()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
    assert not has_dropout(model)
    model.config.attention_probs_dropout_prob = 0.1
    assert has_dropout(model)


STATES, OTHER = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)


@pytest.mark.parametrize(
    ("output", "made"),
    [(STATES, OTHER), ((STATES,), (OTHER,)), ((STATES, STATES, 1), (OTHER, None, None))],
    ids=["tensor", "tuple of one", "tuple of three"],
)
def test_an_output_of_the_same_form_is_made(output, made):
    form = BlockOutput.of(output)
    assert form.hidden_states(output) is STATES
    got = form.build(OTHER)
    assert type(got) is type(made)
    assert got is OTHER or (got[0] is OTHER and got[1:] == made[1:])


@pytest.mark.parametrize("output", [{"hidden_states": STATES}, (), (None, STATES), None])
def test_what_does_not_begin_with_hidden_states_has_no_form(output):
    assert BlockOutput.of(output) is None


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

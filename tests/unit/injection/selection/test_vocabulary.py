"""The size of a model's vocabulary, and the size that an adapter needs."""

import pytest
import torch
from torch import nn

from lorakit import Adapter, LoraConfig, add_adapter
from lorakit.injection.selection.vocabulary import input_embedding, output_layer, rows_needed
from tiny_models import TinyNet, gpt2, llama, t5, vit

PLACES = {
    llama: ("model.embed_tokens", "lm_head"),
    gpt2: ("transformer.wte", "lm_head"),
    t5: ("shared", "lm_head"),
    TinyNet: (None, None),
    vit: ("vit.embeddings.patch_embeddings", None),
}


def modules_of(model):
    return dict(model.named_modules())


@pytest.mark.parametrize(("build", "places"), PLACES.items())
def test_both_ends_are_those_that_the_model_names(build, places):
    model = build()
    found = [end(model, modules_of(model)) for end in (input_embedding, output_layer)]
    assert tuple(one and one[0] for one in found) == places
    assert all(one is None or one[1] is model.get_submodule(one[0]) for one in found)


# The base has 32 rows; an adapter that implies no size needs 0.
NEEDS = {
    "nothing": ({"target_modules": ["q_proj"]}, 0),
    "tokens": ({"target_modules": ["q_proj"], "trainable_token_indices": [4, 9]}, 10),
    "tokens of one end": (
        {"target_modules": ["q_proj"], "trainable_token_indices": {"lm_head": [7]}},
        8,
    ),
    "embedding": ({"target_modules": ["embed_tokens"]}, 32),
    "output layer": ({"target_modules": ["lm_head"]}, 32),
    "in full": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, 32),
}


@pytest.mark.parametrize(("options", "needed"), NEEDS.values(), ids=NEEDS)
def test_tensors_and_tokens_imply_a_size(options, needed):
    model, base = llama(), llama(vocab_size=11)
    add_adapter(model, LoraConfig(r=1, **options))
    adapter = Adapter.from_model(model)
    assert rows_needed(base, modules_of(base), adapter) == (needed, 11)
    other = TinyNet()
    assert rows_needed(other, modules_of(other), adapter) == (0, 0)


def test_base_weights_that_a_file_repeats_imply_one_too():
    model = llama()
    add_adapter(model, LoraConfig(r=1, target_modules=["q_proj"]))
    made = Adapter.from_model(model)
    adapter = Adapter(made.config, made.factors, base_weights={"lm_head": torch.zeros(40, 16)})
    assert rows_needed(model, modules_of(llama()), adapter) == (0, 0)  # modules of another model
    assert rows_needed(llama(), {}, adapter) == (0, 0)
    base = llama()
    assert rows_needed(base, modules_of(base), adapter) == (40, 32)


def test_a_module_that_is_its_own_embedding_has_no_path():
    class Table(nn.Embedding):
        def get_input_embeddings(self):
            return self

    table = Table(3, 2)
    assert input_embedding(table, modules_of(table)) is None

"""Tied input and output embeddings × what an adapter does to them × saving, loading and merging."""

import pytest
import torch

from lorakit import (
    Adapter,
    LoraConfig,
    add_adapter,
    load_adapter,
    merge_adapters,
    merge_and_unload,
    save_adapter,
    unload,
    unmerge_adapters,
)
from lorakit.adapters import grow_vocabulary
from tiny_models import (
    assert_untouched,
    bloom,
    gpt2,
    llama,
    logits,
    masked_bert,
    randomize_,
    snapshot,
    t5,
)
from tolerances import LOGITS_TOLERANCE, largest_error


def tied_llama():
    return llama(tie_word_embeddings=True)


# Builder, an ordinary target, the input embedding as it acts, and the output layer.
MODELS = {
    "gpt2": (gpt2, "c_attn", "wte", "lm_head"),
    "llama": (tied_llama, "q_proj", "embed_tokens", "lm_head"),
    "bloom": (bloom, "query_key_value", "word_embeddings", "lm_head"),
    "bert": (masked_bert, "query", "word_embeddings", "decoder"),
    "t5": (t5, "q", "embed_tokens", "lm_head"),
}
FEATURES = {
    "neither": lambda t, i, o: {"target_modules": [t]},
    "input adapted": lambda t, i, o: {"target_modules": [t, i]},
    "output adapted": lambda t, i, o: {"target_modules": [t, o]},
    "both adapted": lambda t, i, o: {"target_modules": [t, i, o]},
    "output adapted, dora": lambda t, i, o: {"target_modules": [t, o], "use_dora": True},
    "input trained": lambda t, i, o: {"target_modules": [t], "modules_to_save": [i]},
    "output trained": lambda t, i, o: {"target_modules": [t], "modules_to_save": [o]},
    "both trained": lambda t, i, o: {"target_modules": [t], "modules_to_save": [i, o]},
    "input adapted, output trained": lambda t, i, o: {
        "target_modules": [t, i],
        "modules_to_save": [o],
    },
    "tokens": lambda t, i, o: {"target_modules": [t], "trainable_token_indices": [9, 5]},
    "tokens, output adapted": lambda t, i, o: {
        "target_modules": [t, o],
        "trainable_token_indices": [9, 5],
    },
}
STAY_TIED = {"neither", "tokens"}
GROWN = 40

# Each feature meets each model once, and resized models as well as others.
COMBINATIONS = [
    (kind, feature, (i + j) % 2 == 0)
    for i, kind in enumerate(MODELS)
    for j, feature in enumerate(FEATURES)
]

pytestmark = pytest.mark.parametrize(("kind", "feature", "resized"), COMBINATIONS)


def base_of(kind, resized):
    model = MODELS[kind][0]()
    if resized:
        grow_vocabulary(model, GROWN)
    return model


def adapted(kind, feature, resized):
    model = base_of(kind, resized)
    config = LoraConfig(r=2, **FEATURES[feature](*MODELS[kind][1:]))
    add_adapter(model, config)
    return randomize_(model)


def is_tied(model):
    acting = model.encoder.embed_tokens if hasattr(model, "encoder") else None
    embedding = model.get_input_embeddings() if acting is None else acting
    return embedding.weight is model.get_output_embeddings().weight


def test_saved_loaded_merged_and_loaded_by_transformers(kind, feature, resized, tmp_path):
    model = adapted(kind, feature, resized)
    expected = logits(model)
    assert largest_error(expected, logits(base_of(kind, resized))) > 0.01

    save_adapter(model, tmp_path / "adapter")
    again = base_of(kind, resized)
    load_adapter(again, tmp_path / "adapter")
    assert largest_error(logits(again), expected) < LOGITS_TOLERANCE
    value = base_of(kind, resized)
    add_adapter(value, Adapter.from_model(model))
    assert largest_error(logits(value), expected) < LOGITS_TOLERANCE

    merge_adapters(model)
    assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
    unmerge_adapters(model)
    assert torch.equal(logits(model), expected)

    merge_and_unload(again)
    assert largest_error(logits(again), expected) < LOGITS_TOLERANCE
    assert is_tied(again) == (feature in STAY_TIED)
    assert again.config.tie_word_embeddings == is_tied(again)
    again.save_pretrained(tmp_path / "merged")
    loaded = type(again).from_pretrained(tmp_path / "merged").eval()
    assert largest_error(logits(loaded), expected) < LOGITS_TOLERANCE
    rows = GROWN if resized else 32
    assert loaded.config.vocab_size == rows == len(loaded.get_input_embeddings().weight)
    if kind != "t5":  # its config no longer knows untied embeddings
        assert is_tied(loaded) == is_tied(again)


def test_unloading_leaves_the_base_untouched(kind, feature, resized):
    model = base_of(kind, resized)
    before = snapshot(model)
    add_adapter(model, LoraConfig(r=2, **FEATURES[feature](*MODELS[kind][1:])))
    randomize_(model)
    unload(model)
    assert_untouched(model, before)
    assert is_tied(model)

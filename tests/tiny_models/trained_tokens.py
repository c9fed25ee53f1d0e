"""Tiny models some of whose tokens an adapter trains."""

from lorakit import LoraConfig, add_adapter
from tiny_models import gpt2, llama, masked_bert, randomize_, t5

ROWS = (9, 5, 3)


def classifier():
    return llama("LlamaForSequenceClassification")


TARGETS = {gpt2: "c_attn", llama: "q_proj", t5: "q", masked_bert: "query", classifier: "q_proj"}
BUILDS = list(TARGETS)


def with_tokens(build, indices=ROWS, seed=7, name="default", model=None, **options):
    """Return a model with random rows, factors and heads."""
    model = build() if model is None else model
    config = {"target_modules": [TARGETS[build]], **options}
    add_adapter(model, LoraConfig(trainable_token_indices=indices, **config), name)
    return randomize_(model, seed=seed)

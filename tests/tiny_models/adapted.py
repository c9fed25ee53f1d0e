"""Tiny models with random adapters, and the options that every kind of layer is adapted with."""

from torch import nn

from lorakit import LoraConfig, add_adapter, save_adapter
from tiny_models import bert, bloom, distilbert, gpt2, llama, randomize_, roberta, t5

CASES = {
    "llama": (llama, {}),
    "llama rslora": (llama, {"use_rslora": True, "lora_alpha": 3.5}),
    "llama patterns": (
        llama,
        {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {r"layers\.1\..*": 5}, "r": 4},
    ),
    "llama layer 1": (llama, {"layers_to_transform": [1]}),
    "llama head": (llama, {"modules_to_save": ["lm_head"]}),
    "llama head adapted": (llama, {"target_modules": ["lm_head", "embed_tokens"]}),
    "gpt2": (gpt2, {}),
    "gpt2 biases": (gpt2, {"bias": "all"}),
    "gpt2 embedding": (gpt2, {"target_modules": ["wte", "c_attn"]}),
    "gpt2 tied": (gpt2, {"target_modules": ["c_attn"], "modules_to_save": ["wte", "lm_head"]}),
    "bloom": (bloom, {"target_modules": ["query_key_value"], "bias": "all"}),
    "t5": (t5, {"target_modules": ["q", "v"], "bias": "all"}),
    "distilbert": (distilbert, {}),
    "distilbert biases": (distilbert, {"bias": "all"}),
    "bert": (bert, {"bias": "lora_only"}),
    "roberta": (roberta, {"target_modules": ["dense"], "bias": "all"}),
}


_TASKS = {"SequenceClassification": "SEQ_CLS", "TokenClassification": "TOKEN_CLS"}


def save_adapter_of(directory, model, **config):
    """Add a random adapter and save it as another tool would; return the directory.

    There is no lorakit.json and no tokenizer beside it.
    """
    save_adapter(with_adapter(model, **config), directory)
    return directory


def with_adapter(model, name="default", seed=7, scale=0.3, **options):
    """Add a random adapter of rank 2 to a model, or to one that a function makes; return it."""
    model = model if isinstance(model, nn.Module) else model()
    _, _, head = type(model).__name__.partition("For")
    config = {"r": 2, "lora_alpha": 3, "task_type": _TASKS.get(head)} | options
    add_adapter(model, LoraConfig(**config), name)
    return randomize_(model, seed=seed, scale=scale)


def two_adapters(model, **options):
    """Add "a" and "b" with random weights; "b" is active."""
    for seed, name in enumerate(("a", "b")):
        add_adapter(model, LoraConfig(r=2, **options), name)
        randomize_(model, seed=seed)
    return model

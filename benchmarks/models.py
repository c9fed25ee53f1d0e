"""The models that are measured: the shapes of well-known ones, with random weights and data.

Dropout of the base is 0 in all of them, so that LoRA's dropout is the only one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BERT_TARGETS = ("query", "key", "value", "output.dense", "intermediate.dense")
GPT2_TARGETS = ("c_attn", "c_proj", "c_fc")
T5_TARGETS = ("q", "k", "v", "o", "wi", "wo")


@dataclass(frozen=True)
class Shape:
    """A model's sizes, what is adapted in it, and the batch it is measured with.

    Attributes:
        name: What rows call it.
        family: Key of `_FAMILIES`.
        hidden: Width of the residual stream.
        intermediate: Width inside the MLP.
        layers: Number of blocks (of each stack, in T5).
        heads: Attention heads.
        kv_heads: Heads of keys and values (Llama).
        vocabulary: Number of token ids.
        rows: Sequences in a batch.
        length: Tokens in a sequence.
        targets: Names of the adapted layers: every linear layer but the output head.
    """

    name: str
    family: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    rows: int
    length: int
    targets: tuple[str, ...]

    @property
    def tokens(self) -> int:
        """Tokens in a batch."""
        return self.rows * self.length

    def with_layers(self, layers: int) -> "Shape":
        """Return the shape with another depth; its name says so."""
        return replace(self, name=f"{self.name.split(':')[0]}:{layers}", layers=layers)

    def with_batch(self, rows: int, length: int) -> "Shape":
        """Return the shape with another batch."""
        return replace(self, rows=rows, length=length)


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("llama-69m", "llama", 768, 2048, 8, 12, 12, 8000, 4, 256, LLAMA_TARGETS),
        Shape("llama-4m", "llama", 256, 640, 5, 4, 2, 4096, 16, 64, LLAMA_TARGETS),
        Shape("llama-300m", "llama", 1024, 4096, 16, 16, 16, 16000, 2, 128, LLAMA_TARGETS),
        Shape("llama-154m", "llama", 2048, 8192, 2, 32, 8, 8000, 2, 128, LLAMA_TARGETS),
        Shape("llama-1b", "llama", 2048, 8192, 16, 32, 8, 32000, 8, 1024, LLAMA_TARGETS),
        Shape("bert-base", "bert", 768, 3072, 12, 12, 12, 30522, 4, 128, BERT_TARGETS),
        Shape("gpt2-medium", "gpt2", 1024, 4096, 24, 16, 16, 50257, 1, 256, GPT2_TARGETS),
        Shape("t5-base", "t5", 768, 3072, 12, 12, 12, 32128, 2, 128, T5_TARGETS),
        Shape("tiny-llama", "llama", 32, 64, 2, 2, 2, 64, 2, 16, LLAMA_TARGETS),
        Shape("tiny-bert", "bert", 32, 64, 2, 2, 2, 64, 2, 16, BERT_TARGETS),
        Shape("tiny-gpt2", "gpt2", 32, 64, 2, 2, 2, 64, 2, 16, GPT2_TARGETS),
        Shape("tiny-t5", "t5", 32, 64, 2, 2, 2, 64, 2, 16, T5_TARGETS),
    )
}


def shape_named(name: str) -> Shape:
    """Return a shape by name; "llama-69m:2" is llama-69m with 2 layers.

    Raises:
        ValueError: There is no such shape.
    """
    plain, colon, layers = name.partition(":")
    if plain not in SHAPES or (colon and not layers.isdigit()):
        raise ValueError(f"No shape is called {name!r}; shapes: {', '.join(SHAPES)}.")
    return SHAPES[plain].with_layers(int(layers)) if colon else SHAPES[plain]


def _bert_sizes(shape: Shape, positions: int) -> dict[str, Any]:
    return {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": positions,
    }


def _llama_sizes(shape: Shape, positions: int) -> dict[str, Any]:
    llama_only = {"num_key_value_heads": shape.kv_heads, "tie_word_embeddings": False}
    return _bert_sizes(shape, positions) | llama_only


def _gpt2_sizes(shape: Shape, positions: int) -> dict[str, Any]:
    sizes = {"n_embd": shape.hidden, "n_inner": shape.intermediate, "n_positions": positions}
    return sizes | {"n_layer": shape.layers, "n_head": shape.heads}


def _t5_sizes(shape: Shape, positions: int) -> dict[str, Any]:
    sizes = {"d_model": shape.hidden, "d_ff": shape.intermediate}
    sizes |= {"d_kv": shape.hidden // shape.heads}
    return sizes | {"num_layers": shape.layers, "num_heads": shape.heads}


@dataclass(frozen=True)
class _Family:
    """A config class, a model class, the sizes of a shape by their names, and what is fixed."""

    config: str
    model: str
    sizes: Callable[[Shape, int], dict[str, Any]]
    fixed: dict[str, Any]


_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_FAMILIES = {
    "llama": _Family("LlamaConfig", "LlamaForCausalLM", _llama_sizes, {}),
    "bert": _Family(
        "BertConfig",
        "BertForSequenceClassification",
        _bert_sizes,
        {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    ),
    "gpt2": _Family(
        "GPT2Config",
        "GPT2LMHeadModel",
        _gpt2_sizes,
        {**_NO_DROPOUT, "bos_token_id": 0, "eos_token_id": 1},
    ),
    "t5": _Family(
        "T5Config",
        "T5ForConditionalGeneration",
        _t5_sizes,
        {"dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
    ),
}


def build_model(
    shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> nn.Module:
    """Return a model of a shape with seeded random weights; the global generator is left alone."""
    import transformers

    family = _FAMILIES[shape.family]
    sizes = family.sizes(shape, max(512, shape.length + 64)) | family.fixed
    config = getattr(transformers, family.config)(vocab_size=shape.vocabulary, **sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, family.model)(config)
    model.config.use_cache = False
    return model.to(device=device, dtype=dtype).train()


def save_with_tokenizer(shape: Shape, folder: Path, dtype: torch.dtype = torch.float32) -> int:
    """Save a model of random weights with the quickstart's tokenizer; return its parameters."""
    from transformers import AutoTokenizer

    from lorakit.quickstart.model_files import base_model_path

    model: Any = build_model(shape, dtype)
    tokenizer = AutoTokenizer.from_pretrained(base_model_path())
    if len(tokenizer) > shape.vocabulary:
        model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return count_weights(model)


def make_batch(shape: Shape, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Return the arguments of one training step: random tokens, with labels.

    Causal models predict their input; BERT classifies into two classes; T5 writes a quarter as many
    tokens as it reads.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int, below: int = shape.vocabulary) -> Tensor:
        return torch.randint(0, below, sizes, generator=generator).to(device)

    ids = draw(shape.rows, shape.length)
    if shape.family == "bert":
        return {"input_ids": ids, "labels": draw(shape.rows, below=2)}
    if shape.family == "t5":
        return {"input_ids": ids, "labels": draw(shape.rows, max(1, shape.length // 4))}
    return {"input_ids": ids, "labels": ids}


def shared_copy(model: nn.Module, *, own_weights: bool = False) -> nn.Module:
    """Return a copy of a model whose parameters are new objects over the same memory.

    Args:
        model: The model to copy; ties between its parameters are kept.
        own_weights: Whether the copy gets separate memory, to be trained.
    """
    from copy import deepcopy

    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        data = parameter.detach().clone() if own_weights else parameter.detach()
        memo[id(parameter)] = nn.Parameter(data, requires_grad=own_weights)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer
    return deepcopy(model, memo)


def count_weights(model: nn.Module) -> int:
    """Return the number of weights, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())

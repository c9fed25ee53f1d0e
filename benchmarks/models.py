"""The models that are measured: the shapes of well-known ones, with random weights and data.

Dropout of the base is 0 in all of them, so that LoRA's dropout is the only one.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
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


def _llama(shape: Shape, positions: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            vocab_size=shape.vocabulary,
            max_position_embeddings=positions,
            tie_word_embeddings=False,
        )
    )


def _bert(shape: Shape, positions: int) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            hidden_size=shape.hidden,
            intermediate_size=shape.intermediate,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            vocab_size=shape.vocabulary,
            max_position_embeddings=positions,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


def _gpt2(shape: Shape, positions: int) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=shape.hidden,
            n_inner=shape.intermediate,
            n_layer=shape.layers,
            n_head=shape.heads,
            vocab_size=shape.vocabulary,
            n_positions=positions,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=1,
        )
    )


def _t5(shape: Shape, positions: int) -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            d_model=shape.hidden,
            d_ff=shape.intermediate,
            d_kv=shape.hidden // shape.heads,
            num_layers=shape.layers,
            num_heads=shape.heads,
            vocab_size=shape.vocabulary,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )


_FAMILIES: dict[str, Callable[[Shape, int], nn.Module]] = {
    "llama": _llama,
    "bert": _bert,
    "gpt2": _gpt2,
    "t5": _t5,
}


def build_model(
    shape: Shape, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> nn.Module:
    """Return a model of a shape with seeded random weights; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _FAMILIES[shape.family](shape, max(512, shape.length + 64))
    model.config.use_cache = False
    return model.to(device=device, dtype=dtype).train()


def make_batch(shape: Shape, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Return the arguments of one training step: random tokens, with labels.

    Causal models predict their input; BERT tells two classes apart; T5 writes a quarter as many
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
        own_weights: Whether the copy gets memory of its own, to be trained in.
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

"""The models of the table: for each the layers it is about and how both tools are told of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tiny_models import bert, distilbert, gpt2, llama, t5, tokens

ROWS = 4


@dataclass(frozen=True)
class Kind:
    """A model, the layers of it that are adapted, and what it reads.

    Attributes:
        title: The kind of layer, as docs/adapters.md names it.
        build: Makes the model, with the same weights every time.
        options: What LoraConfig is told, by both tools alike.
        inputs: Makes what forward takes, `ROWS` rows of it; None for token ids.
        head: Name of a module that can be trained in full.
        embedding: Name of an embedding with rows of its own for new tokens, or None.
        has_biases: Whether its adapted layers have biases.
    """

    title: str
    build: Callable[[], nn.Module]
    options: dict[str, Any]
    inputs: Callable[[], dict[str, Any]] | None = None
    head: str = "head"
    embedding: str | None = None
    has_biases: bool = True

    def output(self, model: nn.Module, **options: Any) -> torch.Tensor:
        """Return what the model makes of the same inputs every time."""
        given = tokens(model, rows=ROWS) if self.inputs is None else self.inputs()
        out = model(**given, **options)
        return out if isinstance(out, torch.Tensor) else out.logits


class Net(nn.Module):
    """Plain torch modules, one after the other, with a head."""

    def __init__(self, *parts: nn.Module, head: nn.Module):
        super().__init__()
        self.body = nn.Sequential(*parts)
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map rows to what the head makes of them."""
        return self.head(self.body(x).flatten(1))


def _net(*parts: Callable[[], nn.Module], head: Callable[[], nn.Module]) -> Net:
    torch.manual_seed(0)
    return Net(*(make() for make in parts), head=head()).eval()


def _rows(*shape: int) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1)
        return {"x": torch.randn(ROWS, *shape, generator=generator)}

    return make


def mlp() -> Net:
    """Return a net of two linear layers."""
    return _net(
        lambda: nn.Linear(12, 16),
        nn.Tanh,
        lambda: nn.Linear(16, 8, bias=False),
        head=lambda: nn.Linear(8, 3),
    )


def vit() -> nn.Module:
    """Return a vision transformer, whose patches are read by a convolution."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=3,
        num_labels=3,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(config).eval()


def _images() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {"pixel_values": torch.randn(ROWS, 3, 8, 8, generator=generator)}


KINDS = {
    "mlp": Kind("nn.Linear, plain torch", mlp, {"target_modules": ["body.0", "body.2"]}, _rows(12)),
    "llama": Kind(
        "nn.Linear, Llama-like",
        llama,
        {"target_modules": ["q_proj", "v_proj", "down_proj"]},
        head="lm_head",
        embedding="embed_tokens",
        has_biases=False,
    ),
    "bert": Kind(
        "nn.Linear, BERT-like",
        bert,
        {"target_modules": ["query", "value"]},
        head="classifier",
        embedding="word_embeddings",
    ),
    "distilbert": Kind(
        "nn.Linear, DistilBERT-like",
        distilbert,
        {"target_modules": ["q_lin", "v_lin"]},
        head="classifier",
        embedding="word_embeddings",
    ),
    "t5": Kind(
        "nn.Linear, T5-like",
        t5,
        {"target_modules": ["q", "v", "wo"]},
        head="lm_head",
        has_biases=False,
    ),
    "gpt2": Kind(
        "Conv1D, GPT-2-like",
        gpt2,
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True},
        head="lm_head",
        embedding="wte",
    ),
    "embedding": Kind(
        "nn.Embedding",
        llama,
        {"target_modules": ["embed_tokens"]},
        head="lm_head",
        has_biases=False,
    ),
    "vit": Kind(
        "nn.Linear, ViT-like",
        vit,
        {"target_modules": ["q_proj", "v_proj"]},
        _images,
        head="classifier",
    ),
}

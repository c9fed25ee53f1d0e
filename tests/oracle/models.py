"""The models of the table: the layers of each that are adapted, and the options for both tools."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tiny_models import bert, distilbert, gpt2, llama, mixtral, t5, tokens, vit

ROWS = 4


@dataclass(frozen=True)
class Kind:
    """A model, the layers of it that are adapted, and what it reads.

    Attributes:
        title: The kind of layer, as docs/adapters.md names it.
        build: Makes the model, with the same weights every time.
        options: Arguments of LoraConfig, the same for both tools.
        inputs: Makes the arguments of forward, `ROWS` rows; None for token ids.
        head: Name of a module that can be trained in full.
        embedding: Name of an embedding whose tokens can be trained, or None.
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
        """Return the outputs of the model for the same inputs every time."""
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
        """Map rows to the outputs of the head."""
        return self.head(self.body(x).flatten(1))


def _net(features: int, *parts: Callable[[], nn.Module]) -> Callable[[], Net]:
    """Return a function that builds a net whose head reads `features` features."""

    def build() -> Net:
        torch.manual_seed(0)
        return Net(*(make() for make in parts), head=nn.Linear(features, 3)).eval()

    return build


def _rows(*shape: int) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        generator = torch.Generator().manual_seed(1)
        return {"x": torch.randn(ROWS, *shape, generator=generator)}

    return make


class Attending(nn.Module):
    """A residual layer that calls torch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (rows, length, 16) to the same shape."""
        return x + self.self_attn(x, x, x, need_weights=False)[0]


_attention = _net(80, Attending, Attending)
_encoder = _net(80, *[lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)] * 2)
_mlp = _net(8, lambda: nn.Linear(12, 16), nn.Tanh, lambda: nn.Linear(16, 8, bias=False))
_conv1d = _net(
    30, lambda: nn.Conv1d(3, 8, 3, padding=1), nn.Tanh, lambda: nn.Conv1d(8, 6, 3, stride=2)
)
_conv2d = _net(
    54, lambda: nn.Conv2d(3, 8, 3, padding=1), nn.Tanh, lambda: nn.Conv2d(8, 6, 3, stride=2)
)
_conv3d = _net(
    4 * 5 * 4 * 2,
    lambda: nn.Conv3d(2, 8, 3, padding=1),
    nn.Tanh,
    lambda: nn.Conv3d(8, 4, (1, 2, 3), stride=(1, 1, 2)),
)
_grouped_conv2d = _net(
    54,
    lambda: nn.Conv2d(4, 8, 3, padding=1, groups=2),
    nn.Tanh,
    lambda: nn.Conv2d(8, 6, 3, stride=2),
)
_dilated_conv2d = _net(
    54,
    lambda: nn.Conv2d(3, 8, 3, padding=2, dilation=2, padding_mode="circular"),
    nn.Tanh,
    lambda: nn.Conv2d(8, 6, 3, stride=2),
)


def _images() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {"pixel_values": torch.randn(ROWS, 3, 8, 8, generator=generator)}


_CONVOLUTIONS = {"target_modules": ["body.0", "body.2"]}

KINDS = {
    "mlp": Kind(
        "nn.Linear, plain torch", _mlp, {"target_modules": ["body.0", "body.2"]}, _rows(12)
    ),
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
    "conv1d": Kind("nn.Conv1d", _conv1d, _CONVOLUTIONS, _rows(3, 12)),
    "conv2d": Kind("nn.Conv2d", _conv2d, _CONVOLUTIONS, _rows(3, 8, 8)),
    "conv3d": Kind("nn.Conv3d", _conv3d, _CONVOLUTIONS, _rows(2, 5, 5, 5)),
    "grouped": Kind("nn.Conv2d with groups", _grouped_conv2d, _CONVOLUTIONS, _rows(4, 8, 8)),
    "dilated": Kind(
        "nn.Conv2d, dilated and circular", _dilated_conv2d, _CONVOLUTIONS, _rows(3, 8, 8)
    ),
    "attention": Kind(
        "nn.MultiheadAttention", _attention, {"target_modules": ["self_attn"]}, _rows(5, 16)
    ),
    "encoder": Kind(
        "nn.MultiheadAttention in nn.TransformerEncoderLayer",
        _encoder,
        {"target_modules": ["self_attn"]},
        _rows(5, 16),
    ),
    "experts": Kind(
        "experts as 3-D parameters, Mixtral-like",
        mixtral,
        {
            "target_modules": [],
            "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        },
        head="lm_head",
        embedding="embed_tokens",
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

"""Plain torch networks, without transformers."""

import torch
from torch import nn

from tiny_models.architectures import VOCABULARY, WIDTH


class TinyNet(nn.Module):
    """A plain torch module with an embedding, two named layers and a head; no transformers."""

    def __init__(self, width=8, layers=2, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(12, width, dtype=dtype)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "up": nn.Linear(width, 2 * width, dtype=dtype),
                    "down": nn.Linear(2 * width, width, bias=False, dtype=dtype),
                }
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, dtype=dtype)
        self.classifier = nn.Linear(width, 3, dtype=dtype)

    def forward(self, tokens):
        h = self.embed(tokens)
        for layer in self.layers:
            h = h + layer["down"](torch.tanh(layer["up"](h)))
        return self.classifier(self.norm(h))


class Encoder(nn.Module):
    """Two of torch's own encoder layers on embedded tokens."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        sizes = {"dim_feedforward": 24, "dropout": 0.0, "batch_first": True}
        layer = nn.TransformerEncoderLayer(WIDTH, 2, **(sizes | options))
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.score = nn.Linear(WIDTH, 5)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3)
        self.eval()

    def forward(self, input_ids, attention_mask=None):
        padding = None if attention_mask is None else attention_mask == 0
        return self.score(self.encoder(self.embed(input_ids), src_key_padding_mask=padding))

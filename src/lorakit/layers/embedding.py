"""LoRA on torch.nn.Embedding."""

from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.update import LowRankUpdate


class LoraEmbedding(AdaptedLayer, nn.Embedding):
    """An embedding h = W0[i] + Σ s B A[:, i], with lora_A (r, vocabulary) and lora_B (dim, r).

    A starts at zero and B normal, as looking up a row of zeros is what costs nothing. There is no
    dropout on this path, since its input is an index.
    """

    plain_class = nn.Embedding
    zero_factor = "A"
    bias = None

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (num_embeddings, embedding_dim)."""
        return module.weight.shape[0], module.weight.shape[1]  # type: ignore[union-attr,return-value]

    def oriented(self, delta_weight: Tensor) -> Tensor:
        """Transpose (dim, vocabulary) to the stored (vocabulary, dim)."""
        return delta_weight.t()

    def forward(self, input: Tensor) -> Tensor:
        """Map indices (*) to vectors (*, dim)."""
        h = super().forward(input)
        if self.row_adapters is not None and self.acts_by_row():
            return self.row_adapters.embedding(self, input, h)
        for update in self.acting_updates():
            h = h + self.low_rank_rows(update, input).to(h.dtype)
        return h

    def low_rank_rows(self, update: LowRankUpdate, input: Tensor) -> Tensor:
        """Return what one update adds to the vectors of indices (*), (*, dim)."""
        term, _ = update()
        rows = F.embedding(
            input,
            term.A.t(),
            padding_idx=self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
        )  # (*, r)
        return term.scaling * (rows @ term.B.t())

"""LoRA on torch.nn.Embedding."""

from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.magnitude import norms_of
from lorakit.layers.updates.low_rank_update import LowRankUpdate
from lorakit.ops import LowRankTerm
from lorakit.ops.magnitude import add_rescaling


class LoraEmbedding(AdaptedLayer, nn.Embedding):
    """An embedding h = W0[i] + Σ s B A[:, i], with lora_A (r, vocabulary) and lora_B (dim, r).

    A is zero at first and B normal, as looking up a row of zeros is cheap. There is no dropout on
    this path, since its input is an index. A magnitude (DoRA) has one length for each of the dim
    directions, as the weight is taken as (dim, vocabulary).
    """

    plain_class = nn.Embedding
    zero_factor = "A"
    is_linear = False
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
        h = base = super().forward(input)
        if self.per_row_adapters is not None and self.acts_per_row():
            return self.per_row_adapters.added_per_row(self, self.change_per_row, input, h)
        for update in self.acting_updates():
            h = h + self.change_per_row(update, input, base)
        return h

    def change_per_row(self, update: LowRankUpdate, input: Tensor, base: Tensor) -> Tensor:
        """Return what one update adds to the base's vectors of indices (*), (*, dim)."""
        rows, term, magnitude = self._low_rank_rows(update, input)
        rows = rows.to(base.dtype)
        if magnitude is None:
            return rows
        return add_rescaling(rows, base + rows, magnitude, norms_of(self, update, term))

    def base_weight(self) -> Tensor:
        """Return the weight as (dim, vocabulary)."""
        return self.weight.t()

    def _low_rank_rows(
        self, update: LowRankUpdate, input: Tensor
    ) -> tuple[Tensor, LowRankTerm, Tensor | None]:
        term, _, magnitude = update()
        rows = F.embedding(
            input,
            term.A.t(),
            padding_idx=self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
        )  # (*, r)
        return term.scaling * (rows @ term.B.t()), term, magnitude

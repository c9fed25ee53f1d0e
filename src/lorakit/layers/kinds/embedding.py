"""LoRA on torch.nn.Embedding."""

from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.layers.adapted import AdaptedLayer
from lorakit.ops import LinearOperands, LowRankTerm
from lorakit.ops.row_scale import add_changes


class LoraEmbedding(AdaptedLayer, nn.Embedding):
    """An embedding h = W0[i] + Σ s B A[:, i], with lora_A (r, vocabulary) and lora_B (dim, r).

    A is zero at first and B normal, as looking up a row of zeros is cheap. There is no dropout on
    this path, since its input is an index. A row scale has one value for each of the dim
    directions, as the weight is taken as (dim, vocabulary).
    """

    plain_class = nn.Embedding
    zero_factor = "A"
    is_linear = False
    bias = None

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (num_embeddings, embedding_dim)."""
        return module.weight.shape[0], module.weight.shape[1]  # type: ignore[union-attr,return-value]  # an embedding

    def orient(self, delta_weight: Tensor) -> Tensor:
        """Transpose (dim, vocabulary) to the stored (vocabulary, dim)."""
        return delta_weight.t()

    def base_weight(self) -> Tensor:
        """Return the weight as (dim, vocabulary)."""
        return self.weight.t()

    def update_output(self, x: Tensor, base: Tensor, operands: LinearOperands) -> Tensor:
        """Return the vectors of indices (*), given the base's, (*, dim)."""
        changes = [self._vectors(term, x).to(base.dtype) for term in operands.terms]
        return add_changes(base, changes, operands.terms, None)

    def _vectors(self, term: LowRankTerm, indices: Tensor) -> Tensor:
        """Return s B A of indices (*), (*, dim)."""
        A = F.embedding(
            indices,
            term.A.t(),
            padding_idx=self.padding_idx,
            scale_grad_by_freq=self.scale_grad_by_freq,
        )  # (*, r)
        return term.scaling * (A @ term.B.t())

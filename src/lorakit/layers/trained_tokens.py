"""Rows of an embedding, or of an output layer, that an adapter trains instead of the base's."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TrainedTokens(nn.Module):
    """Replaces some rows of a weight: it corrects the output of the base's forward.

    Modules that share their weight (tied embeddings) share the parameter `rows` too.

    Attributes:
        rows: The trained rows, (n, dim).
        indices: Which rows of the weight they replace, (n,), in any order.
        is_named: Whether files hold the rows under this module's path; modules that are tied to it
            repeat them.
    """

    rows: nn.Parameter
    indices: Tensor
    is_named: bool

    def __init__(self, indices: Sequence[int], device: torch.device, *, is_named: bool):
        super().__init__()
        self.is_named = is_named
        self._keep("indices", indices, device)

    def _keep(self, name: str, values: Sequence[int], device: torch.device) -> None:
        """Register whole numbers as a buffer that no state dict holds."""
        self.register_buffer(name, torch.tensor(values, device=device), persistent=False)

    def correct(self, output: Tensor, module: nn.Module, input: Tensor) -> Tensor:
        """Return the output of `module` as if its weight had these rows."""
        raise TypeError(f"{type(self).__name__} does not say how it acts.")

    def extra_repr(self) -> str:
        """Show the number of rows."""
        return f"rows={len(self.indices)}"


class TrainedTokensOfEmbedding(TrainedTokens):
    """Rows of an embedding: the vectors of their tokens are looked up here."""

    def __init__(self, table: nn.Embedding, indices: Sequence[int], *, is_named: bool):
        """Take the rows from an embedding of the base's class with weight (n, dim)."""
        super().__init__(indices, table.weight.device, is_named=is_named)
        self.table = table
        order = sorted(range(len(indices)), key=indices.__getitem__)
        self._keep("_places", order, table.weight.device)
        self._keep("_ascending", [indices[place] for place in order], table.weight.device)

    @property
    def rows(self) -> nn.Parameter:  # type: ignore[override]  # a property instead of an attribute
        """The trained rows, (n, dim)."""
        return self.table.weight  # type: ignore[return-value]  # an embedding

    def correct(self, output: Tensor, module: nn.Module, input: Tensor) -> Tensor:
        """Replace the vectors of the trained tokens, (*, dim)."""
        ids = input.to(torch.int64).contiguous()
        ascending: Tensor = self._ascending  # type: ignore[assignment]  # an attribute of a module
        nearest = torch.searchsorted(ascending, ids).clamp_max(len(ascending) - 1)
        is_trained = ascending[nearest] == ids
        vectors = self.table(self._places[nearest])  # type: ignore[index]  # an embedding
        return torch.where(is_trained[..., None], vectors.to(output.dtype), output)


class TrainedTokensOfLinear(TrainedTokens):
    """Rows of an output layer: their outputs change by x (rows − W0[indices])ᵀ.

    As a difference it combines with an update s B A on the same layer, and rows that are not
    trained yet change no bit.
    """

    def __init__(self, rows: nn.Parameter, indices: Sequence[int], *, is_named: bool):
        super().__init__(indices, rows.device, is_named=is_named)
        self.rows = rows

    def correct(self, output: Tensor, module: nn.Module, input: Tensor) -> Tensor:
        """Replace the outputs of the trained tokens, (*, out)."""
        W0 = own_weight(module)
        change = self.rows - W0[self.indices].to(self.rows.dtype)
        product = F.linear(input.to(change.dtype), change)
        # In place: logits take the most memory of a batch, and nothing else reads these.
        return output.index_add_(-1, self.indices, product.to(output.dtype))


def own_weight(module: nn.Module) -> Tensor:
    """Return the base's own weight of a module, also while updates are merged into it."""
    kept = getattr(module, "kept_parameters", {})
    return kept.get("weight", module.weight)

"""How an adapted layer describes itself to the executors: weight, updates, operands."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from lorakit.layers.updates.low_rank_update import LowRankUpdate, shared_seed
from lorakit.ops import LowRankTerm
from lorakit.ops.quantized import Weight


class KernelShape(NamedTuple):
    """Properties of a convolution that the matrices of its update do not show."""

    channels: int
    """Channels of the input, of all groups."""
    kernel: tuple[int, ...]
    """Elements of the kernel in each dimension."""
    groups: int = 1

    @property
    def columns(self) -> int:
        """Columns of lora_A: channels times the elements of a kernel."""
        return self.channels * math.prod(self.kernel)


class DescribedLayer(nn.Module):
    """Base class of adapted layers, independent of what computes their output.

    Attributes:
        updates: The updates by adapter name.
        active_updates: Names of the adapters that act in forward.
        kept_parameters: The base's own parameters while the layer is merged; empty otherwise.
    """

    plain_class: ClassVar[type[nn.Module]]
    weight: Tensor
    updates: nn.ModuleDict
    active_updates: tuple[str, ...]
    kept_parameters: dict[str, nn.Parameter | None]
    siblings: Any
    per_row_adapters: Any = None
    weight_norms: Any = None

    @classmethod
    def kernel_shape(cls, module: nn.Module) -> KernelShape | None:
        """Return channels, kernel and groups of a convolution; None for any other layer."""
        return None

    def base_weight(self) -> Weight:
        """Return the base's weight as (out, in), dense or quantised."""
        return self.weight

    def acting_updates(self) -> list[LowRankUpdate]:
        """Return the updates that forward applies to all rows: none while merged."""
        if self.kept_parameters or not self.active_updates or self.acts_per_row():
            return []
        return [self.updates[name] for name in self.active_updates if name in self.updates]  # type: ignore[misc]

    def acts_per_row(self) -> bool:
        """Return whether each batch row currently has its own adapter."""
        return self.per_row_adapters is not None and self.per_row_adapters.act_on(self)

    def operands(
        self, updates: list[LowRankUpdate], seed: Tensor | None = None
    ) -> tuple[list[LowRankTerm], Tensor | None, list[Tensor | None]]:
        """Return the terms of these updates, a trained bias or else the base's, and magnitudes.

        Args:
            updates: The updates; all of them drop the same elements of the input.
            seed: Seed of the shared dropout mask; None draws one if an update drops.
        """
        if seed is None:
            seed = shared_seed(updates)
        called = [update(seed) for update in updates]
        bias = next((bias for _, bias, _ in called if bias is not None), self.bias)
        # accelerate's hooks would move the seed to the GPU, where reading it would wait.
        terms = [t if t.seed is None else t._replace(seed=seed) for t, *_ in called]
        return terms, bias, [magnitude for *_, magnitude in called]  # type: ignore[return-value]

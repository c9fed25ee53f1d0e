"""How an adapted layer describes itself to the executors: its operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from lorakit.layers.row_norms import row_norms_with
from lorakit.layers.updates.low_rank_update import LowRankUpdate, shared_seed
from lorakit.ops import LinearOperands, LowRankTerm
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
        executor: What forward calls with the layer and its input.
        siblings: The `SiblingGroup` of layers expected to read the same input, or None.
        per_row_adapters: Which adapter each row of a batch has, inside `adapter_rows`.
        prepared: What decoding keeps from call to call.
        known_terms: What decoding keeps of each adapter where rows have different ones.
    """

    plain_class: ClassVar[type[nn.Module]]
    is_matrix_product: ClassVar[bool] = False
    """Whether the output is the input times a matrix, which one grouped product can compute."""
    applies_row_scales: ClassVar[bool] = True
    """Whether the output takes the row scale of a term."""

    weight: Tensor
    updates: nn.ModuleDict
    active_updates: tuple[str, ...]
    kept_parameters: dict[str, nn.Parameter | None]
    executor: Callable[[Any, Tensor], Tensor]
    siblings: Any
    per_row_adapters: Any = None
    prepared: Any = None
    known_terms: Any = None

    @classmethod
    def kernel_shape(cls, module: nn.Module) -> KernelShape | None:
        """Return channels, kernel and groups of a convolution; None for any other layer."""
        return None

    def base_weight(self) -> Weight:
        """Return the base's weight as (out, in), dense or quantized."""
        return self.weight

    def acting_updates(self) -> list[LowRankUpdate]:
        """Return the updates that forward applies to all rows: none while merged."""
        if self.kept_parameters or not self.active_updates or self.acts_per_row():
            return []
        return [self.updates[name] for name in self.active_updates if name in self.updates]  # type: ignore[misc]  # an item of a ModuleDict

    def acts_per_row(self) -> bool:
        """Return whether each batch row currently has its own adapter."""
        return self.per_row_adapters is not None and self.per_row_adapters.act_on(self)

    def choose_executor(self) -> None:
        """Choose what computes the output, after updates, merging or rows have changed."""
        raise TypeError(f"{type(self).__name__} does not say what computes its output.")

    # ---- what executors call ----

    def operands(
        self, updates: Sequence[LowRankUpdate], seed: Tensor | None = None
    ) -> LinearOperands:
        """Return the weight, the bias that variants of the updates give, and terms.

        Args:
            updates: The updates; all of them drop the same elements of the input.
            seed: Seed of the shared dropout mask; None draws one if an update drops.
        """
        seed = shared_seed(updates) if seed is None else seed
        terms: list[LowRankTerm] = []
        bias = base_bias = getattr(self, "bias", None)  # a router of experts has none
        for update in updates:
            term, tensors = update(seed)
            if term.seed is not None:
                # accelerate's hooks would move the seed to the GPU, where reading it would wait.
                term = term._replace(seed=seed)
            for variant, tensor in zip(update.variants, tensors, strict=True):
                term = variant.term(term, tensor, self, update)
                bias = variant.bias(bias, base_bias, tensor)
            terms.append(term)
        return LinearOperands(self.operand_weight(), bias, terms)

    def operand_weight(self) -> Weight:
        """Return the weight in the form that `compute` takes."""
        return self.base_weight()

    def norms_with(self, update: LowRankUpdate, term: LowRankTerm) -> Tensor:
        """Return ‖W0 + s B A‖ of each row of the weight with one of the updates, (out,)."""
        return row_norms_with(update, term, self.weight, self.base_weight)

    def base_output(self, x: Tensor) -> Tensor:
        """Return the output of the base alone."""
        return self.plain_class.forward(self, x)

    def compute(self, x: Tensor, operands: LinearOperands) -> Tensor:
        """Return the output that operands give."""
        return self.update_output(x, self.base_output(x), operands)

    def update_output(self, x: Tensor, base: Tensor, operands: LinearOperands) -> Tensor:
        """Return the output that operands give for some batch rows, given the base's output."""
        raise TypeError(f"{type(self).__name__} does not say what its operands give.")

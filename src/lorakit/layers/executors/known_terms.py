"""The terms of one layer's adapters, kept while rows with changing adapters are decoded.

Describing one adapter's term to the compiled kernels takes longer than computing its product with
one token. A server changes the adapters of its rows at almost every step, so what it needs of an
adapter is kept from one batch to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lorakit.layers.described import DescribedLayer
from lorakit.layers.executors.prepared import stay_in_place
from lorakit.layers.hooks import brings_input_or_weights
from lorakit.layers.updates.low_rank_update import LowRankUpdate
from lorakit.ops.native.cpu_kernels import address
from lorakit.ops.operands import LinearOperands, LowRankTerm, check_shapes
from lorakit.ops.term_table import TermTable


class KnownTerm(NamedTuple):
    """What is kept of one update."""

    update: LowRankUpdate
    changed: int
    """The update's `changed` when this was made; -1 if it must be made for each batch."""
    addresses: tuple[int, int]
    """Where its factors were; `functional_call` and `.data` exchange them unseen."""
    versions: tuple[int, ...]
    """Versions of its parameters when their values were read."""
    block: object
    """Identity of the `adapter_rows` block in which values were read."""
    stays: bool
    """Whether it holds as long as the update's attributes do, whatever the values."""
    slot: int
    """Place in the table of terms."""
    term: LowRankTerm
    bias: Tensor | None
    """A trained bias, or None for the base's."""

    def describes(self, update: LowRankUpdate) -> bool:
        """Return whether this was made of the update as it is, apart from its values."""
        return (
            self.update is update
            and self.changed == update.changed
            and self.addresses == _addresses(update)
        )

    def has_values_of(self, update: LowRankUpdate, block: object) -> bool:
        """Return whether the update still has the values that were read."""
        return self.block is block and self.versions == _versions(update)


Seeds = Callable[[LowRankUpdate], Tensor | None]
"""The seed of the dropout mask that an update shares with others, or None if it drops nothing."""


class KnownTerms:
    """Terms by adapter name, and their table; copies of the layer begin without.

    Attributes:
        table: The terms described to the compiled kernels.
        prepared: What the last batch needed of the layer, for batches with the same rows.
        prepared_before: What the batch with other rows before needed: reading prompts and decoding
            take turns.
    """

    def __init__(self) -> None:
        self.table = TermTable()
        self.prepared: Any = None
        self.prepared_before: Any = None
        self._known: dict[str, KnownTerm] = {}
        self._exchanges = -1
        self._current: dict[str, KnownTerm] = {}
        """Those that hold until `LowRankUpdate.exchanges` changes."""

    def __reduce__(self) -> tuple[type[KnownTerms], tuple[()]]:
        return KnownTerms, ()

    def of(
        self, layer: DescribedLayer, names: Sequence[str], seeds: Seeds, block: object
    ) -> list[KnownTerm]:
        """Return the terms of some adapters that a layer has, without gradients."""
        updates: Any = layer.updates._modules  # the methods of a ModuleDict are slow
        known = self._known
        if self._exchanges != LowRankUpdate.exchanges:
            self._exchanges, self._current = LowRankUpdate.exchanges, {}
            for name in [name for name in known if name not in updates]:
                self.table.free(known.pop(name).slot)
        current = self._current
        if current.keys() >= {*names}:
            kept = [current[name] for name in names]
            if not any(each.update._forward_pre_hooks for each in kept):
                return kept
        found: list[KnownTerm] = []
        for name in names:
            update: LowRankUpdate = updates[name]
            each = known.get(name)
            if (
                each is None
                or not each.describes(update)
                or update._forward_pre_hooks
                or not (each.stays or each.has_values_of(update, block))
            ):
                slot = None if each is None else each.slot
                each = known[name] = self._make_term(layer, update, seeds(update), block, slot)
            if each.stays and each.changed >= 0:
                current[name] = each
            found.append(each)
        return found

    def _make_term(
        self,
        layer: DescribedLayer,
        update: LowRankUpdate,
        seed: Tensor | None,
        block: object,
        slot: int | None,
    ) -> KnownTerm:
        stays, bias = stay_in_place([update]), None
        if stays and not update.variants:  # the usual case, and all that its operands can be
            term = update.term()
        else:
            operands = layer.operands([update], seed)
            (term,) = operands.terms
            bias = None if operands.bias is getattr(layer, "bias", None) else operands.bias
        W0 = layer.base_weight()
        check_shapes(torch.Size((W0.shape[1],)), LinearOperands(W0, None, (term,)))
        is_kept = not update.drops and update.keeps_saved_factors
        is_kept = is_kept and not brings_input_or_weights(update)
        return KnownTerm(
            update,
            update.changed if is_kept else -1,
            _addresses(update),
            _versions(update),
            block,
            stays and bias is None,
            self.table.put(term, slot),
            term,
            bias,
        )


def _addresses(update: LowRankUpdate) -> tuple[int, int]:
    factors: Any = update._parameters
    return address(factors["lora_A"]), address(factors["lora_B"])


def _versions(update: LowRankUpdate) -> tuple[int, ...]:
    return tuple(each._version for each in update._parameters.values() if each is not None)

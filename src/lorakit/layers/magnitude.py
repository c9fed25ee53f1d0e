"""What layers do where an update has a magnitude (DoRA).

With c = m / ‖W0 + s B A‖ for each row of the weight, an update changes the output by

    (c - 1) drop(x) W0ᵀ + c s (drop(x) Aᵀ) Bᵀ

so that the base's output stays the sum's first term and several updates add up. Without dropout and
for one update that is c x (W0 + s B A)ᵀ + b, a plain adapted layer with its rows scaled. Under
dropout the base's product is needed twice, as the masks act on one of them only.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lorakit.layers.update import LowRankUpdate, shared_seed
from lorakit.ops import LowRankTerm, low_rank_linear
from lorakit.ops.dropout import drop
from lorakit.ops.magnitude import add_rescaling, row_norms, scaled_rows, squared_row_norms

if TYPE_CHECKING:
    from lorakit.layers.adapted import AdaptedLayer


def have_magnitude(updates: Sequence[LowRankUpdate]) -> bool:
    """Return whether one of these updates has a magnitude."""
    return any(update.has_magnitude for update in updates)


def scales_rows(updates: Sequence[LowRankUpdate]) -> bool:
    """Return whether the updates are one whose magnitude scales the rows of the layer's product."""
    return len(updates) == 1 and updates[0].has_magnitude and not updates[0].drops


class WeightNorms:
    """The norms of one layer's weight, and of the weight with each update, kept while they hold.

    Those with an update are kept in evaluation only: a step of training changes them all.
    """

    def __init__(self) -> None:
        self._squared: tuple[weakref.ref[Tensor], tuple[int, int], Tensor] | None = None
        self._of_updates: weakref.WeakKeyDictionary[LowRankUpdate, Any] = (
            weakref.WeakKeyDictionary()
        )

    def __getstate__(self) -> dict[str, Any]:
        return {}  # copies and pickles of a model compute their own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()

    def of(self, layer: AdaptedLayer, update: LowRankUpdate, term: LowRankTerm) -> Tensor:
        """Return ‖W0 + s B A‖ of each row, (out,).

        Args:
            layer: The layer.
            update: One of its updates.
            term: What calling the update returned.
        """
        A, B, weight = term.A.detach(), term.B.detach(), layer.weight
        if not all(_is_plain(tensor) for tensor in (A, B, weight)):
            W0 = layer.base_weight()
            return row_norms(W0, squared_row_norms(W0), A, B, term.scaling)
        if not update.keeps_saved_factors:
            # They are made anew in each pass: neither version nor address tells of a change.
            return row_norms(layer.base_weight(), self._squared_norms(layer), A, B, term.scaling)
        key = (
            *(id(weight), weight._version, weight.data_ptr()),
            *(A._version, A.data_ptr(), B._version, B.data_ptr(), term.scaling),
        )
        if torch.is_grad_enabled():
            self._of_updates.pop(update, None)
        elif update in self._of_updates and self._of_updates[update][0] == key:
            return self._of_updates[update][1]
        norms = row_norms(layer.base_weight(), self._squared_norms(layer), A, B, term.scaling)
        if not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            self._of_updates[update] = (key, norms)
        return norms

    def _squared_norms(self, layer: AdaptedLayer) -> Tensor:
        weight = layer.weight
        if self._squared is not None:
            of_weight, state, squared = self._squared
            if of_weight() is weight and state == (weight._version, weight.data_ptr()):
                return squared
        with torch.inference_mode(False):
            squared = squared_row_norms(layer.base_weight())
        self._squared = (weakref.ref(weight), (weight._version, weight.data_ptr()), squared)
        return squared


def _is_plain(tensor: Tensor) -> bool:
    """Whether torch counts the changes of a tensor, and it has an address."""
    return not (
        torch.compiler.is_compiling() or isinstance(tensor, FakeTensor) or tensor.is_inference()
    )


def norms_of(layer: AdaptedLayer, update: LowRankUpdate, term: LowRankTerm) -> Tensor:
    """Return ‖W0 + s B A‖ of each row of a layer's weight with one of its updates, (out,)."""
    if layer.weight_norms is None:
        layer.weight_norms = WeightNorms()
    return layer.weight_norms.of(layer, update, term)


def initial_magnitude(layer: AdaptedLayer, update: LowRankUpdate) -> Tensor:
    """Return the magnitude with which an update changes the norm of no row, (out,)."""
    return norms_of(layer, update, LowRankTerm(*update.operand_factors(), update.scaling))


def linear_output(layer: AdaptedLayer, x: Tensor, updates: list[LowRankUpdate]) -> Tensor:
    """Run a linear layer of whose updates some have a magnitude.

    Args:
        layer: The layer.
        x: (*, in).
        updates: Those that act.

    Returns: (*, out).
    """
    seed = shared_seed(updates)
    terms, bias, magnitudes = layer.operands(updates, seed)
    W0 = layer.base_weight()
    if scales_rows(updates):
        v = low_rank_linear(x, W0, None, terms)
        return scaled_rows(v, magnitudes[0], norms_of(layer, updates[0], terms[0]), bias)  # type: ignore[arg-type]
    h = low_rank_linear(x, W0, bias, terms)
    for update, term, magnitude in zip(updates, terms, magnitudes, strict=True):
        if magnitude is not None:
            read = x if term.seed is None else drop(x, term.drop_probability, term.seed)
            v = low_rank_linear(read, W0, None, [LowRankTerm(term.A, term.B, term.scaling)])
            h = add_rescaling(h, v, magnitude, norms_of(layer, update, term))
    return h

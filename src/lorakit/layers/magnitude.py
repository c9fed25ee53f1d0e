"""The output of layers whose update has a magnitude (DoRA).

With c = m / ‖W0 + s B A‖ for each row of the weight, an update changes the output by

    (c - 1) v + s (drop(x) Aᵀ) Bᵀ    with v = x W0ᵀ + s (drop(x) Aᵀ) Bᵀ

so the base's output stays the first term of the sum, and several updates add up. For one update the
output is c v + b, a plain adapted layer with its rows scaled. Dropout acts on the input of the
low-rank path alone, as it does without a magnitude, so one product with the base's weight is
enough (docs/adr/0011).
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lorakit.layers.described import DescribedLayer
from lorakit.layers.updates.low_rank_update import LowRankUpdate
from lorakit.ops import LowRankTerm, low_rank_linear
from lorakit.ops.low_rank import low_rank_product
from lorakit.ops.magnitude import add_rescaling, row_norms, scaled_rows, squared_row_norms


def have_magnitude(updates: Sequence[LowRankUpdate]) -> bool:
    """Return whether one of these updates has a magnitude."""
    return any(update.has_magnitude for update in updates)


def runs_as_one_product(updates: Sequence[LowRankUpdate]) -> bool:
    """Return whether a layer with these updates is one node, with or without row scales.

    If there are several updates and one has a magnitude, each scales a separate sum.
    """
    return len(updates) == 1 or not have_magnitude(updates)


class WeightNorms:
    """The norms of one layer's weight with each update, cached in evaluation while they are valid.

    A training step changes them all, so training caches nothing. In evaluation they would take
    three to five times as long as the rest of a layer that reads one token. torch does not count
    writes through `.data`, so sums of the tensors are compared as well as their versions; on a GPU
    the comparison would have to wait, so norms are computed again there.
    """

    def __init__(self) -> None:
        self._of_updates: weakref.WeakKeyDictionary[LowRankUpdate, Any] = (
            weakref.WeakKeyDictionary()
        )

    def __getstate__(self) -> dict[str, Any]:
        return {}  # copies and pickles of a model compute the norms again

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()

    def of(self, layer: DescribedLayer, update: LowRankUpdate, term: LowRankTerm) -> Tensor:
        """Return ‖W0 + s B A‖ of each row, (out,).

        Args:
            layer: The layer.
            update: One of its updates.
            term: What calling the update returned.
        """
        A, B, weight = term.A.detach(), term.B.detach(), layer.weight
        if torch.is_grad_enabled() or not all(_is_comparable(one) for one in (A, B, weight)):
            self._of_updates.pop(update, None)
            return self._norms(layer, A, B, term)
        key = (id(weight), term.scaling, *(_state(one) for one in (weight, A, B)))
        if update in self._of_updates and self._of_updates[update][0] == key:
            return self._of_updates[update][1]
        norms = self._norms(layer, A, B, term)
        if not torch.is_inference_mode_enabled():
            self._of_updates[update] = (key, norms)
        return norms

    def _norms(self, layer: DescribedLayer, A: Tensor, B: Tensor, term: LowRankTerm) -> Tensor:
        W0 = layer.base_weight()
        return row_norms(W0, squared_row_norms(W0), A, B, term.scaling)


def _state(tensor: Tensor) -> tuple[int, int, float]:
    """Return what changes if the tensor's values change."""
    # 16 bits would overflow in the sum.
    wide = torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else None
    return tensor._version, tensor.data_ptr(), tensor.detach().sum(dtype=wide).item()


def _is_comparable(tensor: Tensor) -> bool:
    """Whether torch counts the changes of a tensor, and its sum is cheap."""
    return not (
        torch.compiler.is_compiling()
        or isinstance(tensor, FakeTensor)
        or tensor.is_inference()
        or tensor.device.type != "cpu"
    )


def norms_of(layer: DescribedLayer, update: LowRankUpdate, term: LowRankTerm) -> Tensor:
    """Return ‖W0 + s B A‖ of each row of a layer's weight with one of its updates, (out,)."""
    if layer.weight_norms is None:
        layer.weight_norms = WeightNorms()
    return layer.weight_norms.of(layer, update, term)


def initial_magnitude(layer: DescribedLayer, update: LowRankUpdate) -> Tensor:
    """Return the magnitude that leaves the norm of every row unchanged, (out,)."""
    return norms_of(layer, update, LowRankTerm(*update.operand_factors(), update.scaling))


def linear_output(layer: DescribedLayer, x: Tensor, updates: list[LowRankUpdate]) -> Tensor:
    """Run a linear layer, whether its updates have magnitudes or not.

    Args:
        layer: The layer.
        x: (*, in).
        updates: The updates that act.

    Returns: (*, out).
    """
    terms, bias, magnitudes = layer.operands(updates)
    W0 = layer.base_weight()
    if all(magnitude is None for magnitude in magnitudes):
        return low_rank_linear(x, W0, bias, terms)
    if len(updates) == 1:
        v = low_rank_linear(x, W0, None, terms)
        return scaled_rows(v, magnitudes[0], norms_of(layer, updates[0], terms[0]), bias)  # type: ignore[arg-type]
    plain = [t for t, magnitude in zip(terms, magnitudes, strict=True) if magnitude is None]
    base = low_rank_linear(x, W0, None, ())
    h = base if bias is None else base + bias.to(base.dtype)
    for term in plain:
        h = h + low_rank_product(x, term).to(h.dtype)
    for update, term, magnitude in zip(updates, terms, magnitudes, strict=True):
        if magnitude is not None:
            change = low_rank_product(x, term).to(h.dtype)
            norms = norms_of(layer, update, term)
            h = add_rescaling(h + change, base + change, magnitude, norms)
    return h

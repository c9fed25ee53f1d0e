"""The norms ‖W0 + s B A‖ of the rows of an updated weight, cached while they are valid."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lorakit.layers.updates.low_rank_update import LowRankUpdate
from lorakit.ops import LowRankTerm
from lorakit.ops.quantized import Weight
from lorakit.ops.row_scale import row_norms


class RowNorms:
    """The norms of one layer's weight with each update, cached in evaluation while they are valid.

    A training step changes them all, so training caches nothing. In evaluation they would take
    three to five times as long as the rest of a layer that reads one token. torch does not count
    writes through `.data`, so sums of the tensors are compared as well as their versions; on a GPU
    the comparison would have to wait, so norms are computed again there.
    """

    def __init__(self) -> None:
        self._by_update: weakref.WeakKeyDictionary[LowRankUpdate, Any] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[RowNorms], tuple[()]]:
        return RowNorms, ()  # copies and pickles of a model compute the norms again

    def of(
        self,
        update: LowRankUpdate,
        term: LowRankTerm,
        stored: Tensor,
        base_weight: Callable[[], Weight],
    ) -> Tensor:
        """Return ‖W0 + s B A‖ of each row, (out,).

        Args:
            update: One of the layer's updates.
            term: Its term.
            stored: The weight as the layer stores it; a change of it is noticed.
            base_weight: Function that returns the weight as (out, in), dense or quantized.
        """
        A, B = term.A.detach(), term.B.detach()

        def compute() -> Tensor:
            return row_norms(base_weight(), A, B, term.scaling)

        if torch.is_grad_enabled() or not all(_is_comparable(one) for one in (A, B, stored)):
            self._by_update.pop(update, None)
            return compute()
        key = (id(stored), term.scaling, *(_state(one) for one in (stored, A, B)))
        if update in self._by_update and self._by_update[update][0] == key:
            return self._by_update[update][1]
        norms = compute()
        if not torch.is_inference_mode_enabled():
            self._by_update[update] = (key, norms)
        return norms


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

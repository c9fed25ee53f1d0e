"""The norms ‖W0 + s B A‖ of the rows of an updated weight, cached while they are valid."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lorakit.layers.updates.low_rank_update import LowRankUpdate
from lorakit.ops import LowRankTerm
from lorakit.ops.quantized import Weight
from lorakit.ops.row_scale import row_norms

_known: weakref.WeakKeyDictionary[LowRankUpdate, tuple[object, Tensor]] = (
    weakref.WeakKeyDictionary()
)


def row_norms_with(
    update: LowRankUpdate, term: LowRankTerm, stored: Tensor, base_weight: Callable[[], Weight]
) -> Tensor:
    """Return ‖W0 + s B A‖ of each row, (out,), cached in evaluation while they are valid.

    A training step changes them all, so training caches nothing. In evaluation they would take
    three to five times as long as the rest of a layer that reads one token. torch does not count
    writes through `.data`, so sums of the tensors are compared as well as their versions; on a GPU
    the comparison would have to wait, so norms are computed again there.

    Args:
        update: An update of one layer.
        term: Its term.
        stored: The weight as the layer stores it; a change of it is noticed.
        base_weight: Function that returns the weight as (out, in), dense or quantized.
    """
    A, B = term.A.detach(), term.B.detach()
    if torch.is_grad_enabled() or not all(_is_comparable(one) for one in (A, B, stored)):
        _known.pop(update, None)
        return row_norms(base_weight(), A, B, term.scaling)
    key = (id(stored), term.scaling, *(_state(one) for one in (stored, A, B)))
    known = _known.get(update)
    if known is not None and known[0] == key:
        return known[1]
    norms = row_norms(base_weight(), A, B, term.scaling)
    if not torch.is_inference_mode_enabled():
        _known[update] = (key, norms)
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

"""The updates of one layer prepared for decoding, where Python costs more than arithmetic.

For one token the products of a small layer take less time than describing them to the compiled
kernels. Without gradients, what does not depend on the input is kept from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from lorakit.layers.described import DescribedLayer
from lorakit.layers.hooks import brings_input_or_weights
from lorakit.layers.updates.low_rank_update import LowRankUpdate
from lorakit.ops import linear_group, skinny
from lorakit.ops.native.cpu_kernels import THIN_DTYPES, CpuKernels, is_recorded
from lorakit.ops.native.prepared_add import PreparedAdd, PreparedTerm
from lorakit.ops.per_row_terms import PerRowTerms
from lorakit.ops.quantized import Weight

_WEIGHTS = (Tensor, torch.nn.Parameter)


class PreparedUpdates:
    """The acting updates of a layer without gradients, as long as nothing is exchanged.

    Copies prepare again.
    """

    def __init__(self) -> None:
        self._exchanges = -1
        self._adds: list[PreparedTerm] = []
        self._updates: list[LowRankUpdate] = []
        self._dtype = torch.float32
        self._most_tokens = 0

    def __reduce__(self) -> tuple[type[PreparedUpdates], tuple[()]]:
        return PreparedUpdates, ()

    def output(self, layer: DescribedLayer, x: Tensor) -> Tensor | None:
        """Return a layer's output for x (*, in); None if it must be computed otherwise."""
        if self._exchanges != LowRankUpdate.exchanges:
            self._prepare(layer)
        tokens = x.numel() // max(x.shape[-1], 1) if x.ndim else 0
        if (
            not 0 < tokens <= self._most_tokens
            or not _is_plain(x, self._dtype)
            or any(update._forward_pre_hooks for update in self._updates)
        ):
            return None
        h = layer.base_output(x)
        for update, add in zip(self._updates, self._adds, strict=True):
            factors: Any = update._parameters  # of now: `functional_call` exchanges them unseen
            if not add.add_(h, x, tokens, factors["lora_A"], factors["lora_B"]):
                self._exchanges = -1
                return None
        return h

    def _prepare(self, layer: DescribedLayer) -> None:
        self._exchanges = LowRankUpdate.exchanges
        self._updates, self._adds, self._most_tokens = layer.acting_updates(), [], 0
        weight = layer.base_weight()
        if not _is_plain_weight(weight) or not stay_in_place(self._updates):
            return
        self._dtype = weight.dtype
        operands = layer.operands(self._updates)
        self._adds = [
            add for term in operands.terms if (add := skinny.prepare_add(weight, term)) is not None
        ]
        if len(self._adds) == len(operands.terms):
            self._most_tokens = linear_group.most_tokens_apart(operands, weight.dtype)


class PreparedRows:
    """The terms of a batch whose rows have different adapters, none of which drops or scales."""

    def __init__(self, kernels: CpuKernels, weight: Tensor, rows: PerRowTerms):
        self._kernels, self._dtype, self._rows = kernels, weight.dtype, rows
        self._adds: dict[tuple[int, ...], tuple[PreparedAdd, torch.Size]] = {}
        """By the shape of the input; also the shape of the output."""

    def output(self, layer: DescribedLayer, x: Tensor) -> Tensor | None:
        """Return the layer's output for x (rows, *, in); None if it must be computed otherwise."""
        if not _is_plain(x, self._dtype):
            return None
        known = self._adds.get(x.shape)
        if known is None:
            if not x.numel():
                return None
            self._rows.check_shapes(x, layer.weight)
        h = layer.base_output(x)
        if known is None:
            known = self._adds[x.shape] = self._prepare(x, h), h.shape
        add, shape = known
        if h.shape != shape:  # the layer has got another weight
            return None
        add.add_(h, x)
        return h

    def _prepare(self, x: Tensor, h: Tensor) -> PreparedAdd:
        sizes = (x.numel() // x.shape[-1], x.shape[-1], h.shape[-1])
        groups = self._rows.kernel_groups(sizes[0])
        return PreparedAdd(self._kernels, self._dtype, sizes, *groups)


def prepared_rows(layer: DescribedLayer, rows: PerRowTerms) -> PreparedRows | None:
    """Return the terms of a batch prepared, if a layer's weight and this machine allow it."""
    weight = layer.base_weight()
    if not _is_plain_weight(weight) or rows.biases or rows.row_scales() is not None:
        return None
    kernels = skinny.kernels_for(weight)
    return PreparedRows(kernels, weight, rows) if isinstance(kernels, CpuKernels) else None


def _is_plain_weight(weight: Weight) -> TypeGuard[Tensor]:
    is_dense = isinstance(weight, Tensor) and type(weight) in _WEIGHTS
    return is_dense and weight.dtype in (torch.float32, torch.bfloat16)


def _is_plain(x: Tensor, dtype: torch.dtype) -> bool:
    """Return whether a compiled product can read all of an activation at its address."""
    return (
        type(x) is Tensor
        and x.dtype is dtype
        and x.is_cpu
        and x.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and not is_recorded()
    )


def stay_in_place(updates: Sequence[LowRankUpdate]) -> bool:
    """Return whether the factors of updates can be read at their address in later calls.

    Their values may change by then, by an optimizer for instance.
    """
    return not torch.compiler.is_compiling() and all(
        all(variant.is_all_in_factors for variant in update.variants)
        and update.keeps_saved_factors
        and not update.drops
        and not brings_input_or_weights(update)
        and all(
            factor.dtype in THIN_DTYPES and factor.is_cpu and factor.is_contiguous()
            for factor in (update.lora_A, update.lora_B)
        )
        for update in updates
    )

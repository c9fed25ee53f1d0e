"""The updates of one layer prepared for decoding, where Python costs more than arithmetic.

For one token the products of a small layer take less time than describing them to the compiled
kernels. Without gradients, what does not depend on the input is kept from call to call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lorakit.layers.described import DescribedLayer
from lorakit.layers.hooks import brings_input_or_weights
from lorakit.layers.updates.low_rank_update import LowRankUpdate
from lorakit.ops import linear_group, skinny
from lorakit.ops.native.cpu_kernels import THIN_DTYPES, PreparedAdd

_WEIGHTS = (Tensor, torch.nn.Parameter)


class PreparedUpdates:
    """The acting updates of a layer, as long as nothing is exchanged; copies prepare again."""

    def __init__(self) -> None:
        self._exchanges = -1
        self._adds: list[PreparedAdd] = []
        self._updates: list[LowRankUpdate] = []
        self._dtype = torch.float32
        self._most_tokens = 0

    def __reduce__(self) -> tuple[type[PreparedUpdates], tuple[()]]:
        return PreparedUpdates, ()

    def output(self, layer: DescribedLayer, x: Tensor) -> Tensor | None:
        """Return the layer's output without gradients; None if it must be computed otherwise.

        Args:
            layer: A layer with acting updates.
            x: (*, in).
        """
        if self._exchanges != LowRankUpdate.exchanges:
            self._prepare(layer)
        tokens = x.numel() // max(x.shape[-1], 1) if x.ndim else 0
        if (
            not 0 < tokens <= self._most_tokens
            or type(x) is not Tensor
            or x.dtype != self._dtype
            or x.device.type != "cpu"
            or not x.is_contiguous()
            or torch.is_autocast_enabled("cpu")
            or any(update._forward_pre_hooks for update in self._updates)
        ):
            return None
        h = layer.base_output(x)
        for add in self._adds:
            if not add.add_(h, x, tokens):
                self._exchanges = -1
                return None
        return h

    def _prepare(self, layer: DescribedLayer) -> None:
        self._exchanges = LowRankUpdate.exchanges
        self._updates, self._adds, self._most_tokens = layer.acting_updates(), [], 0
        weight = layer.base_weight()
        if (
            not isinstance(weight, Tensor)
            or type(weight) not in _WEIGHTS
            or weight.dtype not in (torch.float32, torch.bfloat16)
            or not stay_in_place(self._updates)
            or any(update.bias is not None for update in self._updates)
        ):
            return
        self._dtype = weight.dtype
        operands = layer.operands(self._updates)
        self._adds = [
            add for term in operands.terms if (add := skinny.prepared_add(weight, term)) is not None
        ]
        if len(self._adds) == len(operands.terms):
            self._most_tokens = linear_group.most_tokens_apart(operands, weight.dtype)


def stay_in_place(updates: Sequence[LowRankUpdate]) -> bool:
    """Return whether the factors of updates can be read at their address in later calls.

    Their values may change by then, by an optimizer for instance.
    """
    return not torch.compiler.is_compiling() and all(
        not update.has_magnitude
        and update.keeps_saved_factors
        and update.lora_A.dtype in THIN_DTYPES
        and update.lora_B.dtype in THIN_DTYPES
        and update.lora_A.device.type == "cpu"
        and update.lora_A.is_contiguous()
        and update.lora_B.is_contiguous()
        and not update.drops
        and not brings_input_or_weights(update)
        for update in updates
    )

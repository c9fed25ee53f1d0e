"""LoRA on the weight of a module whose forward reads it, such as a router of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.class_swap import mixed_class
from lorakit.ops import LowRankTerm


class LoraReadWeight(AdaptedLayer):
    """Runs the plain forward on W0 + Σ s B A, as it is unknown how it uses the weight.

    The sum is computed in each pass, which suits small weights: a router has a row for each expert.
    There is no dropout, as the input of the product is not visible.
    """

    is_linear = False
    applies_row_scales = False

    bias: nn.Parameter | None

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (in, out) of the weight (out, in)."""
        rows, columns = module.weight.shape  # type: ignore[union-attr,misc]  # an attribute of a module
        return columns, rows  # type: ignore[return-value]  # an attribute of a module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the plain forward with the weight and bias that the active updates give."""
        self.refuse_rows(f"a {self.plain_class.__name__}", "its weight, which all rows share")
        updates = self.acting_updates()
        if not updates:
            return super(AdaptedLayer, self).forward(*args, **kwargs)
        operands = self.operands(updates)
        parameters = {**self._parameters, "weight": self._add_to_weight(operands.terms)}
        if operands.bias is not None and self.bias is not None:
            parameters["bias"] = operands.bias.to(self.bias.dtype)
        # A shallow copy with other parameters: nothing that another thread reads changes.
        view = self.plain_class.__new__(self.plain_class)
        vars(view).update(vars(self))
        vars(view)["_parameters"] = parameters
        return self.plain_class.forward(view, *args, **kwargs)

    def _add_to_weight(self, terms: Sequence[LowRankTerm]) -> Tensor:
        wide = torch.promote_types(self.weight.dtype, terms[0].A.dtype)
        deltas = [term.scaling * (term.B @ term.A) for term in terms]
        return (self.weight.to(wide) + sum(delta.to(wide) for delta in deltas)).to(
            self.weight.dtype
        )


def read_weight_class(plain: type[nn.Module]) -> type[LoraReadWeight]:
    """Return the class that adapts modules of a class whose forward reads their weight."""
    return mixed_class(LoraReadWeight, plain, "Lora")

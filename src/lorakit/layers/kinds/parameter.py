"""LoRA on a parameter that is not the weight of a layer, such as the stacked weights of experts."""

from __future__ import annotations

import weakref
from typing import Any, Self

from torch import Tensor, nn

from lorakit.errors import AdapterStateError
from lorakit.layers.adapted import AdaptedLayer


class AdaptedParameter(AdaptedLayer):
    """Carries the updates of one stacked weight (experts, out, in) of a module, its owner.

    It is a child of its owner, whose forward reads it; the weight stays the owner's. lora_A is
    (experts, r, in) and lora_B (experts, out, r), so that s B A is an update of every expert.

    It does not contain its owner: code that walks through a model binds the two, as
    `LoraExperts` does, so copies and pickles of a model hold no references to the original.
    """

    plain_class = nn.Module
    applies_row_scales = False
    bias = None

    def __init__(self, owner: nn.Module, parameter_name: str) -> None:
        super().__init__()
        self.parameter_name = parameter_name
        self.carry_nothing()
        self.bind(owner)

    def bind(self, owner: nn.Module) -> Self:
        """Set the module that owns the parameter."""
        self.__dict__["_owner"] = weakref.ref(owner)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_owner"}

    @property
    def weight_owner(self) -> nn.Module:
        """The module that owns the parameter."""
        reference = vars(self).get("_owner")
        owner = None if reference is None else reference()
        if owner is None:
            raise AdapterStateError(
                f"The module of {self.parameter_name} is gone, expected the one its updates were "
                "added to. Look the layers up in the model again."
            )
        return owner

    @property
    def weight_name(self) -> str:  # type: ignore[override]  # a property instead of an attribute
        """Name of the parameter in its owner."""
        return self.parameter_name

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a property instead of an attribute
        """The owner's parameter, as it is stored."""
        return getattr(self.weight_owner, self.parameter_name)

    @property
    def is_transposed(self) -> bool:
        """Whether the parameter is stored as (experts, in, out)."""
        return bool(self.weight_owner.is_transposed)

    @property
    def experts(self) -> int:
        """Number of matrices stacked in the parameter."""
        return self.weight.shape[0]

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (in, out) of one expert's matrix."""
        _, rows, columns = module.weight.shape  # type: ignore[union-attr,misc]  # an attribute of a module
        return (rows, columns) if module.is_transposed else (columns, rows)  # type: ignore[return-value]  # an attribute of a module

    @classmethod
    def factor_shapes(cls, module: nn.Module, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return (experts, r, in) and (experts, out, r)."""
        in_features, out_features = cls.factor_sizes(module)
        experts: int = module.experts  # type: ignore[assignment]  # an attribute of a module
        return (experts, r, in_features), (experts, out_features, r)

    def base_weight(self) -> Tensor:
        """Return the weight as (experts, out, in)."""
        return self.orient(self.weight)

    def orient(self, delta_weight: Tensor) -> Tensor:
        """Transpose (experts, out, in) to (experts, in, out) if it is stored that way."""
        return delta_weight.transpose(-2, -1) if self.is_transposed else delta_weight

    def restore_in_place(self) -> None:
        """Leave the owner, which becomes plain again when its last adapted parameter leaves."""
        owner: Any = self.weight_owner
        del owner.adapted_parameters[self.parameter_name]
        if not owner.adapted_parameters:
            owner.restore_in_place()

    def extra_repr(self) -> str:
        """Show which parameter it is."""
        return self.parameter_name

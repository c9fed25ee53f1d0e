"""LoRA on a parameter that is not the weight of a layer, such as the stacked weights of experts."""

from __future__ import annotations

import weakref
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from lorakit.errors import AdapterStateError
from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.replaced import plain_class_of, swap_plain_class


class AdaptedParameter(AdaptedLayer):
    """Carries the updates of one stacked weight (experts, out, in) of a module, its owner.

    It is a child of its owner, whose forward reads it; the weight stays the owner's. lora_A is
    (experts, r, in) and lora_B (experts, out, r), so that s B A is an update of every expert.

    It does not contain its owner: code that walks through a model binds the two, as
    `ParameterOwner` does, so copies and pickles of a model hold no references to the original.
    """

    plain_class = nn.Module
    applies_row_scales = False
    bias = None

    def __init__(self, owner: nn.Module, parameter_name: str, is_transposed: bool) -> None:
        super().__init__()
        self.parameter_name = parameter_name
        self.is_transposed = is_transposed
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

    def attach(self, owner_class: type[ParameterOwner]) -> None:
        """Make this a child of its owner, whose class is swapped if necessary.

        Args:
            owner_class: The class that the owner gets, a subclass of its class.
        """
        owner = self.weight_owner
        if not isinstance(owner, ParameterOwner):
            swap_plain_class(owner, owner_class)
            owner.adapted_parameters = nn.ModuleDict()
        owner.adapted_parameters[self.parameter_name] = self  # type: ignore[operator,index]  # an item of a ModuleDict

    def restore_in_place(self) -> None:
        """Leave the owner, which becomes plain again when its last adapted parameter leaves."""
        owner: ParameterOwner = self.weight_owner  # type: ignore[assignment]  # an attribute of a module
        del owner.adapted_parameters[self.parameter_name]
        if not owner.adapted_parameters:
            owner.restore_owner_in_place()

    def extra_repr(self) -> str:
        """Show which parameter it is."""
        return self.parameter_name


class ParameterOwner(nn.Module):
    """Mixin for the class of a module some of whose parameters carry updates.

    Attributes:
        adapted_parameters: The parameters that carry updates, by name.
    """

    mixed_of: ClassVar[tuple[Any, type[nn.Module], str]]
    adapted_parameters: nn.ModuleDict

    @classmethod
    def plain_owner_class(cls) -> type[nn.Module]:
        """Return the class that owners had before they were adapted."""
        return cls.mixed_of[1]

    def bind_parameters(self) -> list[AdaptedParameter]:
        """Return the adapted parameters, each bound to this owner."""
        return [parameter.bind(self) for parameter in self.adapted_parameters.values()]  # type: ignore[operator]  # an attribute of a module

    def restore_owner_in_place(self) -> None:
        """Swap the plain class back and drop every update."""
        del self.adapted_parameters
        plain: type[nn.Module] = plain_class_of(self).plain_owner_class()  # type: ignore[attr-defined]  # an adapted class
        swap_plain_class(self, plain)


def get_adapted_parameter(owner: nn.Module, name: str, is_transposed: bool) -> AdaptedParameter:
    """Return the `AdaptedParameter` of a parameter: the attached one, or a new one."""
    if isinstance(owner, ParameterOwner) and name in owner.adapted_parameters:
        return owner.adapted_parameters[name].bind(owner)  # type: ignore[operator,return-value]  # an item of a ModuleDict
    return AdaptedParameter(owner, name, is_transposed)

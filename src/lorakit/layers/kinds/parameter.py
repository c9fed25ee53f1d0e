"""LoRA on a parameter that is no layer of its own, such as the stacked weights of experts."""

from __future__ import annotations

import weakref
from typing import Any, Self

from torch import Tensor, nn

from lorakit.errors import AdapterStateError
from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.replaced import plain_class_of, swap_plain_class


class AdaptedParameter(AdaptedLayer):
    """Carries the updates of one stacked weight (experts, out, in) of a module, its owner.

    It is a child of its owner, whose forward reads it; the weight stays the owner's. lora_A is
    (experts, r, in) and lora_B (experts, out, r), so that s B A is an update of every expert.

    The owner is no part of it: who walks through a model binds the two, as `ParameterOwner` does,
    so that copies and pickles of a model hold no pointers into the original.
    """

    plain_class = nn.Module
    bias = None

    def __init__(self, owner: nn.Module, parameter_name: str, is_transposed: bool) -> None:
        super().__init__()
        self.parameter_name = parameter_name
        self.is_transposed = is_transposed
        self.updates = nn.ModuleDict()
        self.active_updates = ()
        self.kept_parameters = {}
        self.siblings = None
        self.bind(owner)

    def bind(self, owner: nn.Module) -> Self:
        """Say whose parameter this is."""
        self.__dict__["_owner"] = weakref.ref(owner)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_owner"}

    @property
    def weight_owner(self) -> nn.Module:
        """The module whose parameter this is."""
        reference = vars(self).get("_owner")
        owner = None if reference is None else reference()
        if owner is None:
            raise AdapterStateError(
                f"The module of {self.parameter_name} is gone, expected the one its updates were "
                "added to. Look the layers up in the model anew."
            )
        return owner

    @property
    def weight_name(self) -> str:  # type: ignore[override]
        """Name of the parameter in its owner."""
        return self.parameter_name

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The owner's parameter, as it is stored."""
        return getattr(self.weight_owner, self.parameter_name)

    @property
    def experts(self) -> int:
        """How many matrices are stacked in the parameter."""
        return self.weight.shape[0]

    @classmethod
    def factor_sizes(cls, module: nn.Module) -> tuple[int, int]:
        """Return (in, out) of one expert's matrix."""
        _, rows, columns = module.weight.shape  # type: ignore[union-attr,misc]
        return (rows, columns) if module.is_transposed else (columns, rows)  # type: ignore[return-value]

    @classmethod
    def factor_shapes(cls, module: nn.Module, r: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return (experts, r, in) and (experts, out, r)."""
        in_features, out_features = cls.factor_sizes(module)
        experts: int = module.experts  # type: ignore[assignment]
        return (experts, r, in_features), (experts, out_features, r)

    def base_weight(self) -> Tensor:
        """Return the weight as (experts, out, in)."""
        return self.oriented(self.weight)

    def oriented(self, delta_weight: Tensor) -> Tensor:
        """Transpose (experts, out, in) to the stored (experts, in, out), where it is so stored."""
        return delta_weight.transpose(-2, -1) if self.is_transposed else delta_weight

    def attach(self, owner_class: type[ParameterOwner]) -> None:
        """Make this a child of its owner, whose class is swapped if need be.

        Args:
            owner_class: What the owner becomes; a subclass of its own class.
        """
        owner = self.weight_owner
        if not isinstance(owner, ParameterOwner):
            swap_plain_class(owner, owner_class)
            owner.adapted_parameters = nn.ModuleDict()
        owner.adapted_parameters[self.parameter_name] = self  # type: ignore[operator,index]

    def restore_in_place(self) -> None:
        """Leave the owner, which becomes plain again with its last adapted parameter."""
        owner: ParameterOwner = self.weight_owner  # type: ignore[assignment]
        del owner.adapted_parameters[self.parameter_name]
        if not owner.adapted_parameters:
            owner.restore_owner_in_place()

    def extra_repr(self) -> str:
        """Show which parameter it is."""
        return self.parameter_name


class ParameterOwner(nn.Module):
    """Mixed into the class of a module some of whose parameters carry updates.

    Attributes:
        adapted_parameters: Those parameters by name.
    """

    adapted_parameters: nn.ModuleDict

    @classmethod
    def plain_owner_class(cls) -> type[nn.Module]:
        """Return the class that owners of this class had before."""
        raise TypeError(f"{cls.__name__} does not say which class it was made of.")

    def bound_parameters(self) -> list[AdaptedParameter]:
        """Return the adapted parameters, each knowing its owner."""
        return [parameter.bind(self) for parameter in self.adapted_parameters.values()]  # type: ignore[operator]

    def restore_owner_in_place(self) -> None:
        """Swap the plain class back and drop every update."""
        del self.adapted_parameters
        plain: type[nn.Module] = plain_class_of(self).plain_owner_class()  # type: ignore[attr-defined]
        swap_plain_class(self, plain)


def adapted_parameter_of(owner: nn.Module, name: str, is_transposed: bool) -> AdaptedParameter:
    """Return what adapts a parameter: the object it has, or a new unattached one."""
    if isinstance(owner, ParameterOwner) and name in owner.adapted_parameters:
        return owner.adapted_parameters[name].bind(owner)  # type: ignore[operator,return-value]
    return AdaptedParameter(owner, name, is_transposed)

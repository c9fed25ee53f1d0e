"""Changing the class of a module in place, so that the model stays the same object."""

from types import MethodType

from torch import nn

from lorakit.errors import TargetError
from lorakit.layers.hooks import has_foreign_forward


def swap_class(module: nn.Module, new_class: type[nn.Module]) -> None:
    """Give `module` another class that keeps its attributes.

    If accelerate has bound the class's `forward` to the instance, the new one is bound instead;
    otherwise the new class would never run.

    Raises:
        TargetError: The instance has a `forward` of unknown origin, which would hide the class's.
    """
    if has_foreign_forward(module):
        raise TargetError(
            f"A {type(module).__name__} cannot be adapted: the instance has its own forward, "
            "expected the one of its class. Remove that attribute before adding an adapter."
        )
    module.__class__ = new_class
    for name in ("forward", "_old_forward"):
        if isinstance(vars(module).get(name), MethodType):
            setattr(module, name, MethodType(new_class.forward, module))

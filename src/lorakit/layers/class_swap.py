"""Changing the class of a module in place, so that the model stays the same object."""

from types import MethodType

from torch import nn

from lorakit.errors import TargetError


def has_foreign_forward(module: nn.Module) -> bool:
    """Return whether somebody other than accelerate put a `forward` on the instance."""
    return "forward" in vars(module) and "_old_forward" not in vars(module)


def swap_class(module: nn.Module, new_class: type[nn.Module]) -> None:
    """Give `module` another class that keeps its attributes.

    accelerate's device-map and offload hooks hide the class's `forward` behind one on the
    instance and keep the old one in `_old_forward`; that is bound anew, or the swapped class
    would never run.

    Raises:
        TargetError: The instance has a `forward` of unknown origin, which would hide the class's.
    """
    if has_foreign_forward(module):
        raise TargetError(
            f"A {type(module).__name__} cannot be adapted: its instance has a forward of its own, "
            "expected the one of its class. Remove that attribute before adding an adapter."
        )
    module.__class__ = new_class
    if "_old_forward" in vars(module):
        module._old_forward = MethodType(new_class.forward, module)  # type: ignore[assignment]

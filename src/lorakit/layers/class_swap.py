"""Changing the class of a module in place, so that the model stays the same object."""

from functools import cache
from types import MethodType
from typing import Any

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


@cache
def mixed_class(mixin: type[nn.Module], plain: type[nn.Module], prefix: str) -> type[Any]:
    """Return the class of both, made at run time, the same one each time.

    Args:
        mixin: The class whose methods come first.
        plain: The class it is mixed into.
        prefix: Begin of the class's name.

    Returns: A subclass of the mixin and then of the plain class, with `mixed_of`, the arguments,
        and `plain_class`, the library's class below all mixins.
    """
    members = {
        "__module__": mixin.__module__,
        "mixed_of": (mixin, plain, prefix),
        "plain_class": getattr(plain, "plain_class", plain),
        # pickle and deepcopy find no such class by its name, so they must make it again.
        "__reduce_ex__": lambda self, _: (_new, type(self).mixed_of, self.__getstate__()),
    }
    return type(f"{prefix}{plain.__name__}", (mixin, plain), members)


def _new(mixin: type[nn.Module], plain: type[nn.Module], prefix: str) -> nn.Module:
    made: Any = mixed_class(mixin, plain, prefix)
    return made.__new__(made)

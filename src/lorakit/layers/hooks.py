"""What runs beside the forward of a module's class: hooks, and forwards set on the instance.

Executors compute for several modules at once only where nothing else would run. All that they need
to know about hooks is in this file.
"""

from types import MethodType

from torch import nn
from torch.nn.modules import module as module_globals


def has_foreign_forward(module: nn.Module) -> bool:
    """Return whether the instance runs a `forward` that is not the one of its class.

    accelerate's hooks set a `forward` on the instance and keep the hidden one in `_old_forward`;
    removing them leaves the class's forward, bound to the instance.
    """
    attributes = vars(module)
    forward = attributes.get("_old_forward", attributes.get("forward"))
    is_the_class_s = (
        isinstance(forward, MethodType)
        and forward.__self__ is module
        and forward.__func__ is type(module).forward
    )
    return forward is not None and not is_the_class_s


def brings_input_or_weights(module: nn.Module) -> bool:
    """Return whether a hook may change the input or bring weights, as those of FSDP do.

    Such a layer cannot be computed before it is called.
    """
    return bool(
        "_hf_hook" in vars(module)
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_intercepted(module: nn.Module) -> bool:
    """Return whether calling the module runs more than the forward of its class."""
    return bool(
        brings_input_or_weights(module) or module._forward_hooks or has_foreign_forward(module)
    )


def has_global_hooks() -> bool:
    """Return whether calling any module runs hooks that are registered for all modules."""
    return bool(
        module_globals._global_forward_hooks
        or module_globals._global_forward_pre_hooks
        or module_globals._global_backward_hooks
        or module_globals._global_backward_pre_hooks
    )

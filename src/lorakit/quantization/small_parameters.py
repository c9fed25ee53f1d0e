"""Keeping the small parameters of a half-precision model in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_HALF = (torch.float16, torch.bfloat16)


def keep_small_parameters_in_float32(model: nn.Module) -> tuple[str, ...]:
    """Turn the weights and biases of norms to float32, in place.

    A norm divides by a sum over all features, and its few parameters scale everything after it;
    both lose the most by 16-bit rounding, and in float32 they cost almost nothing. This applies to
    modules whose parameters all have one dimension and that contain no other modules (LayerNorm,
    RMSNorm, GroupNorm). The bias of a linear layer stays as it is: it is added inside a product of
    16-bit matrices.

    Each such module gets two hooks: its inputs are cast to float32 on the way in, its outputs back
    to the dtype of its input on the way out. So its neighbours see the same dtypes as
    before, and the model runs with and without autocast. Call this before `add_adapter`, so that
    biases that the adapter trains are in float32 too. Adapter files and merged weights are not
    affected.

    Args:
        model: Any torch module; one without half-precision norms stays as it is.

    Returns: Paths of the modules that were changed; `restore_small_parameters` undoes it.
    """
    changed = []
    for path, module in model.named_modules():
        parameters = list(module.parameters(recurse=False))
        if not parameters or any(True for child in module.children()):
            continue
        if not all(p.ndim <= 1 and p.dtype in _HALF for p in parameters):
            continue
        _Border(parameters[0].dtype).attach(module)
        for parameter in parameters:
            parameter.data = parameter.data.float()
        changed.append(path)
    return tuple(changed)


def restore_small_parameters(model: nn.Module) -> tuple[str, ...]:
    """Restore the dtype of the modules and remove the hooks.

    Parameters that were not trained get their exact bits back; trained ones are rounded.

    Returns: Paths of the modules that were changed back.
    """
    restored = []
    for path, module in model.named_modules():
        border = next((h for h in module._forward_pre_hooks.values() if _is_border(h)), None)
        if border is None:
            continue
        owner: _Border = border.__self__  # type: ignore[attr-defined]  # a bound method
        owner.detach(module)
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(owner.dtype)
        restored.append(path)
    return tuple(restored)


def _is_border(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), _Border)


class _Border:
    """The casts on both sides of one module."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        """dtype of the module's parameters before."""
        self._incoming = dtype

    def attach(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self.enter, with_kwargs=True)
        module.register_forward_hook(self.leave)

    def detach(self, module: nn.Module) -> None:
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [k for k, hook in hooks.items() if getattr(hook, "__self__", None) is self]:
                del hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)

    def enter(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        first = next((v for v in (*args, *kwargs.values()) if _floats(v)), None)
        self._incoming = self.dtype if first is None else first.dtype
        return tree_map_only(Tensor, _widen, (args, kwargs))

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        dtype = self._incoming
        return tree_map_only(Tensor, lambda t: t.to(dtype) if _floats(t) else t, output)


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _widen(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor

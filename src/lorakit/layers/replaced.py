"""Modules trained in full: the base's stays unchanged, each adapter trains a copy."""

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from lorakit.layers.bitsandbytes_storage import bits_of
from lorakit.layers.class_swap import mixed_class, swap_class
from lorakit.layers.described import DescribedLayer
from lorakit.layers.frozen_linear import PLAIN_CLASSES
from lorakit.layers.trained_tokens import TrainedTokens


class ReplacedModule(nn.Module):
    """Mixin for the class of a task head, or of a module whose bias or rows are trained.

    Attributes:
        trained_copies: The copies by adapter name. A copy may share parameters with the base, or
            be the `TrainedTokens` that correct what the base returns.
        active_copy: Name of the copy that acts in forward, or None for the base.
        per_row_adapters: Which adapter each row of a batch has, inside `adapter_rows`.
    """

    mixed_of: ClassVar[tuple[Any, type[nn.Module], str]]
    trained_copies: nn.ModuleDict
    active_copy: str | None
    per_row_adapters: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the active adapter's copy, or the base's forward."""
        rows = self.per_row_adapters
        if rows is not None and rows.act_on(self):
            return rows.run_replaced(self, super().forward, self._run_copy, args, kwargs)
        if self.active_copy is None:
            return super().forward(*args, **kwargs)
        acting = self.trained_copies[self.active_copy]
        base_result = (
            super().forward(*args, **kwargs) if isinstance(acting, TrainedTokens) else None
        )
        return self._run_copy(acting, base_result, args, kwargs)

    def _run_copy(
        self, acting: nn.Module, base_result: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if isinstance(acting, TrainedTokens):
            return acting.correct(base_result, self, *args, **kwargs)
        base_dtype, own_dtype = _parameter_dtype(self), _parameter_dtype(acting)
        if base_dtype == own_dtype:
            # A float32 bias beside the base's half-precision weight: the weight's dtype rules. The
            # codes of a quantized weight are not numbers to cast.
            codes = ("weight",) if bits_of(acting) else ()
            cast = {
                name: parameter.to(own_dtype)
                for name, parameter in acting._parameters.items()
                if parameter is not None and parameter.dtype != own_dtype and name not in codes
            }
            return functional_call(acting, cast, args, kwargs) if cast else acting(*args, **kwargs)
        # A float32 copy in a half-precision base: cast its input and its output.
        args, kwargs = tree_map(partial(_cast, dtype=own_dtype), (args, kwargs))
        return tree_map(partial(_cast, dtype=base_dtype), acting(*args, **kwargs))


class _ReplacedSequential(ReplacedModule):
    def __iter__(self) -> Iterator[nn.Module]:
        """Iterate over what a Sequential runs: its children without the copies."""
        return iter([one for name, one in self._modules.items() if name != "trained_copies"])  # type: ignore[misc]  # children are not None


def _replaced_class(plain: type[nn.Module]) -> type[nn.Module]:
    mixin = _ReplacedSequential if issubclass(plain, nn.Sequential) else ReplacedModule
    return mixed_class(mixin, plain, "Replaced")


def plain_class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class a replaced or frozen module had before, or that of any other module."""
    found = type(module).mixed_of[1] if isinstance(module, ReplacedModule) else type(module)
    return PLAIN_CLASSES.get(found, found)


def replace_in_place(module: nn.Module) -> ReplacedModule:
    """Swap the class so that forward can run a trained copy; returns the very same object."""
    if not isinstance(module, ReplacedModule):
        swap_class(module, _replaced_class(type(module)))
        module.trained_copies = nn.ModuleDict()
        module.active_copy = None  # type: ignore[assignment]  # None: the base's
    return module  # type: ignore[return-value]  # of the class given to it now


def restore_in_place(module: ReplacedModule) -> None:
    """Swap the plain class back and leave no trace; the copies are dropped."""
    del module.trained_copies, module.active_copy
    vars(module).pop("per_row_adapters", None)
    swap_class(module, plain_class_of(module))


def swap_plain_class(module: nn.Module, new_class: type[nn.Module]) -> None:
    """Swap the class a module has below `ReplacedModule`, or its class where it is not replaced."""
    is_replaced = isinstance(module, ReplacedModule)
    swap_class(module, _replaced_class(new_class) if is_replaced else new_class)


def base_parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module and everything in it, parents first, without what adapters have added.

    The additions are not entered, so the cost does not grow with the number of adapters.
    """
    seen: set[int] = set()
    waiting = [module]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        added = {"trained_copies"} if isinstance(part, ReplacedModule) else set()
        if isinstance(part, DescribedLayer):
            added.add("updates")
        children = [one for name, one in part._modules.items() if name not in added]
        waiting.extend(one for one in reversed(children) if one is not None)


def _parameter_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of the module's first floating point parameter, without its copies."""
    for part in base_parts(module):
        for parameter in part._parameters.values():
            if parameter is not None and parameter.is_floating_point():
                return parameter.dtype
    return torch.float32


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return (
        value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
    )

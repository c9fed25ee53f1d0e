"""Copies of a model's modules over the same weights."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_Module = TypeVar("_Module", bound=nn.Module)


def copy_over_same_weights(model: _Module, apart: Iterable[str] = ()) -> _Module:
    """Return a copy of a model with the same parameters and tensors, the very same objects.

    Args:
        model: Any module.
        apart: Paths of modules whose parameters the copy gets copies of.
    """
    separate = [model.get_submodule(path) for path in apart]
    copied = {id(p) for module in separate for p in module.parameters(recurse=False)}
    memo: dict[int, Any] = {id(p): p for p in model.parameters() if id(p) not in copied}
    for module in separate:
        for parameter in module.parameters(recurse=False):
            values = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            memo[id(parameter)] = values
    with _SharingTensors():
        return deepcopy(model, memo)


class _SharingTensors(TorchFunctionMode):
    """Makes deep copies share the tensors that are not parameters."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return args[0] if func is Tensor.__deepcopy__ else func(*args, **(kwargs or {}))

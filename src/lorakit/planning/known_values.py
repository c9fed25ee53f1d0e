"""Compute real values beside fake tensors, as far as they follow from the batch alone.

A fake tensor has a shape but no values. Models need some values nevertheless: whether a mask is all
ones, how many labels count, which tokens there are. All of these follow from the batch, which is
known. So a fake tensor may carry its value, and an operation whose inputs all have one gives its
result one. Values that follow from the weights stay unknown; a model that needs one is an error.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from lorakit.errors import PlanError
from lorakit.planning.live_storages import tensors_in

_LARGEST = 1 << 22
"""Most elements of a value that is carried along: a mask of 2,048 by 2,048."""
_LARGEST_FROM_NOTHING = 1 << 16
"""Most elements of a value from an operation without inputs, such as a range."""
_LARGEST_FLOAT = 1 << 12
"""Most elements of a floating point value: counters, sums and tables."""
_UNFILLED = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default)
_known: Any = WeakTensorKeyDictionary()
"""Values by fake tensor."""


def known_value(argument: Any) -> Any:
    """Return the known value of a fake tensor, or None; anything else is its own value."""
    return _known.get(argument) if isinstance(argument, FakeTensor) else argument


def forget_values(tensors: Iterable[Tensor]) -> None:
    """Forget the values of tensors, such as parameters after their initialization."""
    for tensor in tensors:
        _known.pop(tensor, None)


class KnownValues(TorchDispatchMode):
    """Dispatch mode that carries values along; used inside a fake mode."""

    def __init__(self, fake_mode: FakeTensorMode):
        super().__init__()
        self._fake_mode = fake_mode

    def fake(self, value: Tensor, device: torch.device | None = None) -> Tensor:
        """Return a fake tensor that carries a real one as its value.

        Args:
            value: Real tensor; not changed.
            device: Device of the fake tensor; None takes that of the value.
        """
        made = self._fake_mode.from_tensor(value)
        if device is not None and made.device != device:
            made = made.to(device)
        _known[made] = value
        return made

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation on fake tensors, and on values if all of them are known."""
        if func is torch.ops.prim.device.default:  # most of all calls: each reading of a device
            return func(*args)
        kwargs = kwargs or {}
        inputs = [*tensors_in(args), *tensors_in([*kwargs.values()])]
        are_known = all(known_value(tensor) is not None for tensor in inputs)
        try:
            result = _run(func, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            if are_known:
                return self._result_of_values(func, args, kwargs, inputs)
            if func is torch.ops.aten.index.Tensor:
                return self._index_by_mask(args, error)
            raise _needs_weights_error(func) from error
        if are_known and _should_keep_value(func, inputs, result):
            self._keep(func, args, kwargs, result)
        elif func._schema.is_mutable:
            _forget_written_values(func, args, kwargs)
        return result

    def _keep(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        values = self._compute_values(func, args, kwargs)
        for made, value in zip(tree_flatten(result)[0], tree_flatten(values)[0], strict=True):
            if isinstance(made, FakeTensor) and isinstance(value, Tensor):
                _known[made] = value

    def _compute_values(self, func: Any, args: Any, kwargs: Any) -> Any:
        values = tree_map(known_value, (args, kwargs))
        if "device" in values[1]:
            values[1]["device"] = torch.device("cpu")
        with unset_fake_temporarily():
            return func(*values[0], **values[1])

    def _result_of_values(self, func: Any, args: Any, kwargs: Any, inputs: list[Tensor]) -> Any:
        device = inputs[0].device if inputs else None
        values = self._compute_values(func, args, kwargs)
        return tree_map(lambda v: self.fake(v, device) if isinstance(v, Tensor) else v, values)

    def _index_by_mask(self, args: Any, error: Exception) -> Any:
        """Index an unknown tensor by a known mask, through the positions where the mask is true."""
        source, indices, *rest = args
        places: list[Any] = []
        for index in indices:
            if index is None or index.dtype not in (torch.bool, torch.uint8):
                places.append(index)
                continue
            value = known_value(index)
            if value is None:
                raise _needs_weights_error(torch.ops.aten.index.Tensor) from error
            with unset_fake_temporarily():
                found = value.nonzero(as_tuple=True)
            places += [self.fake(place, source.device) for place in found]
        return torch.ops.aten.index.Tensor(source, places, *rest)


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on fake tensors.

    The grouped matrix product of experts runs in any dtype on a CPU, but torch implements its fake
    version for bfloat16 only.
    """
    if func is torch.ops.aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
        halves = (matrix.to(torch.bfloat16) for matrix in args[:2])
        return func(*halves, *args[2:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def _should_keep_value(func: Any, inputs: list[Tensor], result: Any) -> bool:
    """Return whether a result is small, and not a random number for initialization."""
    limit = _LARGEST if inputs else _LARGEST_FROM_NOTHING
    outputs = [*tensors_in(result)]
    if any(output.numel() > limit for output in outputs):
        return False
    if not any(output.is_floating_point() for output in outputs):
        return True
    is_random = torch.Tag.nondeterministic_seeded in func.tags or func in _UNFILLED
    return not is_random and all(output.numel() <= _LARGEST_FLOAT for output in outputs)


def _forget_written_values(func: Any, args: Any, kwargs: Any) -> None:
    """Forget the values of tensors that an operation writes to without known inputs."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[position] if position < len(args) else kwargs.get(argument.name)
        forget_values(tensor for tensor in tensors_in(given) if isinstance(tensor, FakeTensor))


def _needs_weights_error(func: Any) -> PlanError:
    name = str(func).removeprefix("aten.").partition(".")[0].lstrip("_")
    return PlanError(
        f"The step of this model cannot be planned: it needs the result of '{name}', which depends "
        "on the values of the weights, expected shapes that follow from the batch alone. Measure "
        "it instead: lorakit plan RECIPE --measure."
    )

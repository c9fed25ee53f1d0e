"""What a step computes from its batch alone is computed for real, beside the fake tensors.

A fake tensor has a shape but no numbers. Models ask for some all the same: whether a mask is all
ones, how many labels count, which tokens these are. All of it follows from the batch, which is
known. So a fake tensor may carry its value, and an operation all of whose inputs have one gives
its result one. What follows from the weights stays unknown; a model that asks for it is an error.
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

_LARGEST = 1 << 22
"""Numbers in the largest value that is carried along: a mask of 2,048 by 2,048."""
_LARGEST_FROM_NOTHING = 1 << 16
"""Numbers in the largest one that an operation without inputs makes, such as a range."""
_LARGEST_FLOAT = 1 << 12
"""Numbers in the largest floating point value: counters, sums and tables."""
_UNFILLED = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default)
_known: Any = WeakTensorKeyDictionary()
"""Values by the fake tensors that stand for them."""


def known_value(tensor: Tensor) -> Tensor | None:
    """Return the real tensor that a fake one stands for, if it is known; a real one is itself."""
    return _known.get(tensor) if isinstance(tensor, FakeTensor) else tensor


def forget_values(tensors: Iterable[Tensor]) -> None:
    """Let tensors stand for nothing known, such as parameters once they are made."""
    for tensor in tensors:
        _known.pop(tensor, None)


class KnownValues(TorchDispatchMode):
    """Carries values along; entered inside a fake mode."""

    def __init__(self, fake_mode: FakeTensorMode):
        super().__init__()
        self._fake_mode = fake_mode

    def fake(self, value: Tensor, device: torch.device | None = None) -> Tensor:
        """Return a fake tensor that stands for a real one and carries it.

        Args:
            value: Left as it is.
            device: Where the fake one is; None for the value's own device.
        """
        made = self._fake_mode.from_tensor(value)
        if device is not None and made.device != device:
            made = made.to(device)
        _known[made] = value
        return made

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation on fake tensors, and on values where all of them are known."""
        kwargs = kwargs or {}
        flat, _ = tree_flatten((args, kwargs))
        inputs = [value for value in flat if isinstance(value, Tensor)]
        are_known = all(known_value(tensor) is not None for tensor in inputs)
        try:
            result = _run(func, args, kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            if are_known:
                return self._result_of_values(func, args, kwargs)
            if func is torch.ops.aten.index.Tensor:
                return self._indexed_by_mask(args, error)
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
        values = tree_map(_value_of, (args, kwargs))
        if "device" in values[1]:
            values[1]["device"] = torch.device("cpu")
        with unset_fake_temporarily():
            return func(*values[0], **values[1])

    def _result_of_values(self, func: Any, args: Any, kwargs: Any) -> Any:
        inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        device = inputs[0].device if inputs else None
        values = self._compute_values(func, args, kwargs)
        return tree_map(lambda v: self.fake(v, device) if isinstance(v, Tensor) else v, values)

    def _indexed_by_mask(self, args: Any, error: Exception) -> Any:
        """Pick by a mask that is known from what is not, as by the places where it is true."""
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

    The product of groups of rows, as experts use it, runs in any dtype on a CPU; torch knows the
    shape of its result in bfloat16 alone.
    """
    if func is torch.ops.aten._grouped_mm.default and args[0].dtype != torch.bfloat16:
        halves = (matrix.to(torch.bfloat16) for matrix in args[:2])
        return func(*halves, *args[2:], **kwargs).to(args[0].dtype)
    return func(*args, **kwargs)


def _should_keep_value(func: Any, inputs: list[Tensor], result: Any) -> bool:
    """Whether a result is small, and no number that weights are drawn from."""
    limit = _LARGEST if inputs else _LARGEST_FROM_NOTHING
    outputs = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
    if any(output.numel() > limit for output in outputs):
        return False
    if not any(output.is_floating_point() for output in outputs):
        return True
    is_drawn = torch.Tag.nondeterministic_seeded in func.tags or func in _UNFILLED
    return not is_drawn and all(output.numel() <= _LARGEST_FLOAT for output in outputs)


def _value_of(argument: Any) -> Any:
    return known_value(argument) if isinstance(argument, Tensor) else argument


def _forget_written_values(func: Any, args: Any, kwargs: Any) -> None:
    """Drop the values of tensors that an operation has changed in a way that is not known."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[position] if position < len(args) else kwargs.get(argument.name)
        for tensor in tree_flatten(given)[0]:
            if isinstance(tensor, FakeTensor):
                forget_values([tensor])


def _needs_weights_error(func: Any) -> PlanError:
    name = str(func).removeprefix("aten.").partition(".")[0].lstrip("_")
    return PlanError(
        f"This model's step cannot be planned: it asks for the result of '{name}', which depends "
        "on the weights' values, expected shapes that follow from the batch alone. Without weights "
        "that is not known. Measure it instead: lorakit plan RECIPE --measure."
    )

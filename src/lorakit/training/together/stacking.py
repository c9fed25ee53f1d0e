"""Stacking the inputs of several runs into one batch, and giving each its part of the output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lorakit.errors import TrainingError

Inputs = Mapping[str, Any]
"""The arguments of a model's forward by name."""

_MASK = "attention_mask"
_POSITIONS = "position_ids"
_TOKENS = ("input_ids", "inputs_embeds")


class Part(NamedTuple):
    """The rows of one run in a stacked batch."""

    first: int
    rows: int
    tokens: int
    """Tokens of its rows, without what was added to reach the length of the others."""


class Stacked(NamedTuple):
    """The inputs of several runs as one batch."""

    inputs: dict[str, Any]
    parts: tuple[Part, ...]
    rows: int
    tokens: int
    """Tokens of each row."""

    @property
    def own_tokens(self) -> tuple[int, ...]:
        """Tokens of each row in its own batch."""
        return tuple(part.tokens for part in self.parts for _ in range(part.rows))


def kind_of(inputs: Inputs) -> tuple[object, ...]:
    """Return what inputs must have in common to be stacked."""
    return tuple(
        (name, (value.ndim, value.dtype, value.device) if isinstance(value, Tensor) else value)
        for name, value in sorted(inputs.items())
        if name != _MASK or (isinstance(value, Tensor) and value.ndim != 2)
    )


def size_of(inputs: Inputs) -> tuple[int, int]:
    """Return the number of rows of a batch, and of the tokens in each with padding."""
    rows, tokens = next(inputs[n] for n in _TOKENS if inputs.get(n) is not None).shape[:2]
    return rows, tokens


def can_be_stacked(inputs: Inputs) -> bool:
    """Return whether every tensor of the inputs has rows of tokens."""
    if all(inputs.get(name) is None for name in _TOKENS):
        return False
    if inputs.get(_POSITIONS) is not None and inputs.get(_MASK) is None:
        return False  # a packed sequence, whose texts the positions alone keep apart
    rows, tokens = size_of(inputs)
    return all(
        _is_padded(name, value, rows, tokens)
        if isinstance(value, Tensor)
        else value is None or isinstance(value, bool | int | float | str)
        for name, value in inputs.items()
    )


def _is_padded(name: str, value: Tensor, rows: int, tokens: int) -> bool:
    if name == _MASK and value.ndim == 4:
        return value.shape[0] == rows and value.shape[2:] == (tokens, tokens)
    return value.ndim in (2, 3) and value.shape[:2] == (rows, tokens)


def stack(inputs: Sequence[Inputs]) -> Stacked:
    """Stack inputs that have the same `kind_of`; shorter rows are padded at their end.

    Args:
        inputs: Of each run.
    """
    parts: list[Part] = []
    first = 0
    for one in inputs:
        rows, tokens = size_of(one)
        parts.append(Part(first, rows, tokens))
        first += rows
    longest = max(part.tokens for part in parts)
    is_padded = any(part.tokens < longest for part in parts)
    stacked: dict[str, Any] = {}
    for name in dict.fromkeys(name for one in inputs for name in one) | {_MASK: None}:
        values: list[Any] = [one.get(name) for one in inputs]
        if name == _MASK and (is_padded or any(mask is not None for mask in values)):
            device = next(v for v in inputs[0].values() if isinstance(v, Tensor)).device
            values = [
                torch.ones(part.rows, part.tokens, dtype=torch.long, device=device)
                if mask is None
                else mask
                for mask, part in zip(values, parts, strict=True)
            ]
        if isinstance(values[0], Tensor):
            stacked[name] = torch.cat([_pad(each, longest) for each in values])
        elif values[0] is not None:
            stacked[name] = values[0]
    return Stacked(stacked, tuple(parts), first, longest)


def _pad(value: Tensor, tokens: int) -> Tensor:
    """Pad (rows, tokens, …), or a mask (rows, 1, tokens, tokens), with zeros."""
    missing = tokens - value.shape[1 if value.ndim < 4 else 2]
    if not missing:
        return value
    if value.ndim == 4:
        # An added query may see itself, as a row of a mask without a key gives NaN.
        closed = 0 if value.dtype == torch.bool else torch.finfo(value.dtype).min
        padded = F.pad(value, (0, missing, 0, missing), value=closed)
        added = torch.arange(tokens - missing, tokens, device=value.device)
        padded[:, :, added, added] = 1 if value.dtype == torch.bool else 0
        return padded
    return F.pad(value, (0,) * (2 * (value.ndim - 2)) + (0, missing))


def map_tensors(function: Callable[[Tensor], Any], outputs: Any) -> Any:
    """Return outputs, in the same structure, with a function applied to each tensor."""
    if isinstance(outputs, Tensor):
        return function(outputs)
    if isinstance(outputs, dict):
        mapped = {key: map_tensors(function, value) for key, value in outputs.items()}
        return type(outputs)(**mapped)
    if isinstance(outputs, tuple | list):
        mapped = [map_tensors(function, value) for value in outputs]
        is_named = hasattr(outputs, "_fields")
        return type(outputs)(*mapped) if is_named else type(outputs)(mapped)
    return outputs


def part_of(output: Tensor, stacked: Stacked, part: Part) -> Tensor:
    """Return one run's part of an output, (rows, …) or (rows, tokens, …).

    Raises:
        TrainingError: The first dimension is not the rows.
    """
    if not output.ndim or output.shape[0] != stacked.rows:
        raise TrainingError(
            f"Cannot train these runs together: the model returns a tensor of shape "
            f"{tuple(output.shape)}, expected {stacked.rows} rows as its first dimension. Train "
            "them one after another: leave --together out."
        )
    rows = output[part.first : part.first + part.rows]
    if output.ndim < 3 or part.tokens == stacked.tokens or output.shape[1] != stacked.tokens:
        return rows
    return rows[:, : part.tokens].contiguous()


def put_part_(output: Tensor, stacked: Stacked, part: Part, values: Tensor) -> None:
    """Write one run's part of an output in place."""
    rows = output[part.first : part.first + part.rows]
    (rows if values.shape == rows.shape else rows[:, : part.tokens]).copy_(values)

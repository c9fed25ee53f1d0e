"""The base's own dropout on stacked batches: each run draws what it would draw alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lorakit.errors import TrainingError
from lorakit.training.together.process_state import RandomState
from lorakit.training.together.stacking import Part, Stacked

_DROPOUT = inspect.signature(F.dropout)
_ATTENTION = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")


class DropoutByRun(TorchFunctionMode):
    """Computes dropout, and attention with dropout, for one run after the other.

    Each sees its rows without added padding, and the random state that it has left.
    """

    def __init__(self, stacked: Stacked, states: Sequence[RandomState]):
        super().__init__()
        self._stacked = stacked
        self._states = states

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            given = _DROPOUT.bind(*args, **kwargs)
            given.apply_defaults()
            x, p, training = (given.arguments[name] for name in ("input", "p", "training"))
            if training and p > 0:
                dims = _token_dims(x, self._stacked.tokens)
                return self._by_run(x, dims, lambda part: F.dropout(self._own(x, part, dims), p))
        elif func is F.scaled_dot_product_attention:
            given = {**dict(zip(_ATTENTION, args, strict=False)), **kwargs}
            if given.get("dropout_p"):
                return self._attention(given)
        return func(*args, **kwargs)

    def _attention(self, given: dict[str, Any]) -> Tensor:
        def attend(part: Part) -> Tensor:
            parts = {name: self._own(given[name], part, (2,)) for name in ("query", "key", "value")}
            mask = given.get("attn_mask")
            if mask is not None:
                parts["attn_mask"] = self._own(mask, part, _token_dims(mask, self._stacked.tokens))
            return F.scaled_dot_product_attention(**{**given, **parts})

        return self._by_run(given["query"], (2,), attend)

    def _own(self, x: Tensor, part: Part, dims: Sequence[int]) -> Tensor:
        """Return a run's rows of (rows, …), or of a mask of one row, without added padding."""
        rows = x if x.shape[0] == 1 != self._stacked.rows else x[part.first :][: part.rows]
        for dim in dims:
            rows = rows.narrow(dim, 0, part.tokens)
        return rows

    def _by_run(self, x: Tensor, dims: Sequence[int], compute: Callable[[Part], Tensor]) -> Tensor:
        """Compute each run's part with its random state; padding is zero.

        Args:
            x: (rows, …).
            dims: Its dimensions that are tokens.
            compute: Returns the part of a run, with the shape of its part of x.

        Raises:
            TrainingError: The first dimension of x is not the rows.
        """
        stacked = self._stacked
        if not x.ndim or x.shape[0] != stacked.rows:
            raise TrainingError(
                f"Cannot train these runs together: their base drops parts of a tensor of shape "
                f"{tuple(x.shape)}, expected {stacked.rows} rows as its first dimension. Train "
                "them one after another."
            )
        found: list[Tensor] = []
        for part, state in zip(stacked.parts, self._states, strict=True):
            with state.drawing():
                output = compute(part)
            missing = stacked.tokens - part.tokens
            if missing:
                widths = [missing if dim in dims else 0 for dim in range(x.ndim)]
                output = F.pad(
                    output, [width for width_of in reversed(widths) for width in (0, width_of)]
                )
            found.append(output)
        return torch.cat(found)


def _token_dims(x: Tensor, tokens: int) -> tuple[int, ...]:
    """Return the dimensions of an activation that are its tokens."""
    if x.ndim == 3:
        return (1,) if x.shape[1] == tokens else ()
    return tuple(dim for dim in (2, 3) if x.ndim == 4 and x.shape[dim] == tokens)

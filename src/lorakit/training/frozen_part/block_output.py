"""What a block returns: its hidden states, or a tuple that begins with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor


@dataclass(frozen=True)
class BlockOutput:
    """The form of what every block of a model returns.

    Most blocks return hidden states. Those of BLOOM, Falcon, GPT-J or DeBERTa return a tuple of
    hidden states and attention weights, which nobody reads in training.
    """

    others: int | None = None
    """Number of values after the hidden states in a tuple; None for hidden states alone."""

    @classmethod
    def of(cls, output: object) -> BlockOutput | None:
        """Return the form of an output, None if it does not begin with hidden states."""
        if isinstance(output, Tensor):
            return cls()
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return cls(len(cast(tuple[object, ...], output)) - 1)
        return None

    def hidden_states(self, output: Any) -> Tensor:
        """Return the hidden states of an output of this form."""
        return output if self.others is None else output[0]

    def made_of(self, hidden_states: Tensor) -> Any:
        """Return an output of this form; the other values are None."""
        if self.others is None:
            return hidden_states
        return (hidden_states, *[None] * self.others)

"""Where the graph of a stacked forward pass is cut, so that each run computes its loss alone."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from lorakit.injection.per_row import RowChoice
from lorakit.training.together.stacking import Part, Stacked, part_of, put_part_


class Leaves:
    """The outputs of one forward pass, cut from its graph for each run.

    A run computes its loss, and the gradients of these leaves, alone. Then one backward pass
    computes the gradients of all adapters.
    """

    def __init__(self, stacked: Stacked, runs: Sequence[str], rows: RowChoice | None):
        """Begin without outputs.

        Args:
            stacked: The stacked batches.
            runs: The run of each.
            rows: The adapters of the rows, if backward runs layers again.
        """
        self._stacked = stacked
        self._rows = rows
        self._parts = dict(zip(runs, stacked.parts, strict=True))
        self._outputs: list[Tensor] = []
        self._leaves: list[tuple[int, Part, Tensor]] = []

    def cut(self, output: Tensor, run: str) -> Tensor:
        """Return a run's part of an output, as a leaf if it has a graph."""
        part = self._parts[run]
        values = part_of(output, self._stacked, part)
        if not output.requires_grad:
            return values
        if not any(output is one for one in self._outputs):
            self._outputs.append(output)
        number = next(n for n, one in enumerate(self._outputs) if one is output)
        leaf = values.detach().requires_grad_()
        self._leaves.append((number, part, leaf))
        return leaf

    def backward(self) -> None:
        """Pass the gradients of the leaves on to the adapters; a leaf without one counts zero."""
        gradients: dict[int, Tensor] = {}
        for number, part, leaf in self._leaves:
            if leaf.grad is not None:
                if number not in gradients:
                    gradients[number] = torch.zeros_like(self._outputs[number])
                put_part_(gradients[number], self._stacked, part, leaf.grad)
        if gradients:
            with nullcontext() if self._rows is None else self._rows.again():
                torch.autograd.backward(
                    [self._outputs[n] for n in gradients], [*gradients.values()]
                )
        self._outputs, self._leaves = [], []

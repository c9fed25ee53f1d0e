"""The blocks below the first adapted one of runs that train together, computed once.

A run looks its examples up as alone. What is not kept is requested: the blocks run once for the
different examples of all runs, and each run keeps what it was the first to ask for. A pass then
takes hidden states in their place; those of runs with another depth are other passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorakit.training.frozen_part import FrozenPart
from lorakit.training.frozen_part.blocks import (
    BlockOutput,
    FrozenBlocks,
    modules_below,
    replacing_forwards,
    watching_output,
)
from lorakit.training.together.stacking import Inputs, Stacked, kind_of, stack


@dataclass(frozen=True)
class Below:
    """What stands for the frozen blocks in one run's pass.

    Attributes:
        blocks: These blocks, of the run's model.
        output: The form of what they return.
        states: Hidden states, (rows, tokens, hidden); None if the blocks run in evaluation mode.
    """

    blocks: FrozenBlocks
    output: BlockOutput
    states: Tensor | None

    @property
    def kind(self) -> tuple[object, ...]:
        """What passes must have in common to be computed as one."""
        dtype = None if self.states is None else self.states.dtype
        return (self.blocks.path, self.blocks.depth, self.output, dtype)


@dataclass(frozen=True)
class Examples:
    """The request for the hidden states of examples that are not kept yet.

    Attributes:
        blocks: The frozen blocks of the run's model.
        output: The form of what they return.
        inputs: What the run's backbone is called with, for these examples.
        keys: The key of each.
        tokens: The first token and the end of each.
        autocast_dtype: dtype of autocast; None where it is off.
        beyond: Which limits of positions the batch exceeds; see `position_limits`.
    """

    blocks: FrozenBlocks
    output: BlockOutput
    inputs: Inputs
    keys: tuple[bytes, ...]
    tokens: tuple[tuple[int, int], ...]
    autocast_dtype: torch.dtype | None
    beyond: tuple[bool, ...]
    order = 0

    @property
    def kind(self) -> tuple[object, ...]:
        """What requests must have in common to be computed as one."""
        where = (self.blocks.depth, self.beyond, self.autocast_dtype)
        return (*where, *kind_of(self.inputs))

    def without(self, known: Sequence[bytes]) -> Examples:
        """Return the request without examples that others have asked for."""
        left = [n for n, key in enumerate(self.keys) if key not in known]
        return replace(
            self,
            inputs=_rows_among(self.inputs, left),
            keys=tuple(self.keys[n] for n in left),
            tokens=tuple(self.tokens[n] for n in left),
        )


class Found(NamedTuple):
    """The answer for one example."""

    states: Tensor
    """Its hidden states, (tokens, hidden), without padding."""
    is_first: bool
    """Whether no other run has asked for it before, so that this one keeps it."""


def below_of(
    part: FrozenPart,
    inputs: Inputs,
    autocast_dtype: torch.dtype | None,
    beyond: tuple[bool, ...],
    compute: Callable[[Examples], Sequence[Found]],
) -> Below | None:
    """Return what stands for the frozen blocks in the batch that a run's model is called with.

    Args:
        part: What the run does with these blocks.
        inputs: What its backbone is called with.
        autocast_dtype: dtype of autocast; None where it is off.
        beyond: Which limits of positions the batch exceeds; see `position_limits`.
        compute: Answers a request for examples.

    Returns: None if the blocks run like all others.
    """
    forward = part.forward
    if part.blocks is None:
        return None
    if forward is None or forward.rows is None:
        return Below(part.blocks, BlockOutput(), None) if part.is_in_evaluation else None
    missing = [*forward.unknown]
    if missing:
        rows = [forward.rows[number] for number in missing]
        request = Examples(
            part.blocks,
            forward.output,
            _rows_among(inputs, missing),
            tuple(row.key for row in rows),
            tuple((row.begin, row.end) for row in rows),
            autocast_dtype,
            beyond,
        )
        found = dict(zip(missing, compute(request), strict=True))
        others = {number for number, one in found.items() if not one.is_first}
        forward.keep({number: one.states for number, one in found.items()}, others)
    ids = next(value for value in inputs.values() if isinstance(value, Tensor))
    states = forward.read_states(ids.shape[1], ids.device)
    return Below(part.blocks, forward.output, states)


@contextmanager
def standing_below(
    model: nn.Module,
    modules: Sequence[nn.Module],
    below: Sequence[Below | None],
    stacked: Stacked,
) -> Iterator[None]:
    """Let hidden states stand for the frozen blocks of a model inside the block.

    Args:
        model: The model that runs the passes of several runs.
        modules: Those of the base; what runs have added is in their models, too.
        below: Of each run, all of one kind.
        stacked: Their stacked batches.
    """
    first = below[0]
    if first is None:
        yield
        return
    inside = {*map(id, modules_below(model, first.blocks))}
    for module in modules:
        if id(module) in inside:
            module.training = False
    states = [_pad(one.states, stacked.tokens) for one in below if one is not None]
    if first.states is None:
        yield
        return
    kept = torch.cat([each for each in states if each is not None])
    blocks = _blocks(model, first.blocks)[: first.blocks.depth]
    passing = [(block, _returning_input(first.output)) for block in blocks[:-1]]
    with replacing_forwards([*passing, (blocks[-1], lambda *_, **__: first.output.build(kept))]):
        yield


def run_frozen_blocks(
    model: nn.Module,
    requests: Sequence[Examples],
    run: Callable[[Stacked], Any],
) -> list[list[Found]]:
    """Run the frozen blocks of a model for the different examples of several requests.

    Args:
        model: The model.
        requests: Of the same blocks and dtype.
        run: Runs the model's backbone on stacked batches.

    Returns: What is found for each example of each request.
    """
    asked: list[Examples] = []
    known: dict[bytes, None] = {}
    for request in requests:
        asked.append(request.without([*known]))
        known |= dict.fromkeys(request.keys)
    running = [one for one in asked if one.keys]
    stacked = stack([one.inputs for one in running])
    first = requests[0]
    blocks = _blocks(model, first.blocks)
    last, above = blocks[first.blocks.depth - 1], blocks[first.blocks.depth :]
    passing = [(block, _returning_input(first.output)) for block in above]
    with watching_output(last) as seen, replacing_forwards(passing):
        run(stacked)
    states = first.output.hidden_states(seen[0])
    found: dict[bytes, Tensor] = {}
    for one, part in zip(running, stacked.parts, strict=True):
        for number, (key, (begin, end)) in enumerate(zip(one.keys, one.tokens, strict=True)):
            found[key] = states[part.first + number, begin:end]
    return [
        [Found(found[key], key in ours.keys) for key in request.keys]
        for request, ours in zip(requests, asked, strict=True)
    ]


def _rows_among(inputs: Inputs, numbers: Sequence[int]) -> dict[str, Any]:
    """Return the inputs of some rows of a batch."""
    return {
        name: value[list(numbers)] if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }


def _blocks(model: nn.Module, blocks: FrozenBlocks) -> list[nn.Module]:
    return [*model.get_submodule(blocks.path).children()]


def _returning_input(output: BlockOutput) -> Callable[..., Any]:
    return lambda hidden_states, *args, **kwargs: output.build(hidden_states)


def _pad(states: Tensor | None, tokens: int) -> Tensor | None:
    return None if states is None else F.pad(states, (0, 0, 0, tokens - states.shape[1]))

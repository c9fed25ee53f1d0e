"""What runs compute together: forward passes, the losses of an output layer, backward passes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorakit.layers.bitsandbytes_storage import bits_of
from lorakit.models.position_limits import beyond_limits, position_limits
from lorakit.ops.linear_loss import known_values
from lorakit.training.frozen_part import FrozenPart
from lorakit.training.losses.output_loss import OutputLoss
from lorakit.training.losses.token_loss import TokenLoss
from lorakit.training.together.frozen_below import Examples, Found, below_of
from lorakit.training.together.leaves import Leaves
from lorakit.training.together.stacked_model import Pass, StackedModel
from lorakit.training.together.stacking import Inputs, size_of
from lorakit.training.together.turns import Turn, Turns

_GAINING_TOKENS = 1024
"""A batch of fewer tokens gains from weights that are read once for all runs; with more, a step is
arithmetic, and stacking only makes activations too large for the caches. On a base in 4 or 8 bits,
whose weights are also made dense once, every batch gains. See `python -m benchmarks.together`."""

_Compute = Callable[[Sequence[Turn]], Sequence[Any]]


@dataclass(frozen=True)
class _Losses:
    """The request for the losses of tokens from the inputs of the output layer.

    Attributes:
        output: The output layer of the run's model, which shares its weight.
        token_loss: The loss of a token.
        hidden: (tokens, in), without a graph.
        targets: Token ids, (tokens,).
    """

    output: OutputLoss
    token_loss: TokenLoss
    hidden: Tensor
    targets: Tensor
    order = 3

    @property
    def kind(self) -> tuple[object, ...]:
        """What requests have in common that are computed as one."""
        return (id(self.output.frozen_weight), self.hidden.dtype, self.token_loss)


@dataclass(frozen=True)
class _Backward:
    """The request to pass on the gradients of all outputs that a run has got."""

    order = 4
    kind = ()


_Request = Examples | Pass | _Losses | _Backward
"""Those of the lowest `order` are served first, and those of one `kind` are computed as one."""


class SharedPasses:
    """Serves runs that take turns, once all of them wait.

    What lies below the first adapted block comes first, then passes of evaluations, so that runs
    that train stay in step; then their forward passes, then losses, then backward. Requests that
    cannot be computed as one are served one kind after the other.

    Attributes:
        turns: The turns of all runs.
        most_tokens: A batch of so many tokens is not stacked.
        limits: Limits of the base's positions; see `position_limits`.
    """

    def __init__(self) -> None:
        self.turns = Turns(self._serve)
        self.most_tokens = _GAINING_TOKENS
        self.limits: tuple[int, ...] = ()
        self._model: StackedModel | None = None
        self._open: list[Leaves] = []
        self._gone: list[str] = []

    def start(self, *turns: Turn) -> None:
        """Start runs, from any thread."""
        self.turns.start(*turns)

    def join(
        self, turn: Turn, model: nn.Module, base: nn.Module, frozen: FrozenPart | None = None
    ) -> Seat:
        """Let a run take part; carry the adapter of its model.

        Args:
            turn: The run.
            model: Its model.
            base: The base without adapters, the same for all runs.
            frozen: What it does with the blocks below its first adapted one.
        """
        if self._model is None:
            self._model = StackedModel(base, next(model.parameters()).device)
            if any(bits_of(module) for module in base.modules()):
                self.most_tokens = sys.maxsize
            self.limits = position_limits(getattr(base, "config", None))
        self._model.attach(turn.name, model)
        return Seat(self, turn, frozen or FrozenPart())

    def leave(self, turn: Turn) -> None:
        """Carry the adapter of a run no longer, once the backward passes are done."""
        turn.do_little(False)
        self._gone.append(turn.name)
        if not self._open:
            self._remove_gone()

    def _remove_gone(self) -> None:
        gone, self._gone = self._gone, []
        for name in gone:
            if self._model is not None:
                self._model.detach(name)

    def _serve(self, turns: Sequence[Turn]) -> None:
        """Compute something for some runs; all of them wait."""
        requests: list[_Request] = [turn.request for turn in turns]
        first = min(requests, key=lambda request: request.order)
        kind = first.kind
        chosen = [
            turn
            for turn, request in zip(turns, requests, strict=True)
            if request.order == first.order and request.kind == kind
        ]
        if isinstance(first, Examples):
            _answer(chosen, self._below)
        elif isinstance(first, Pass):
            _answer(chosen, self._forward)
        elif isinstance(first, _Losses):
            _answer(chosen, _losses_and_gradients)
        else:
            _answer(chosen, self._backward, is_repeatable=False)

    def _below(self, turns: Sequence[Turn]) -> list[list[Found]]:
        model: Any = self._model
        return model.hidden_states([turn.request for turn in turns])

    def _forward(self, turns: Sequence[Turn]) -> list[Any]:
        passes = [turn.request for turn in turns]
        model: Any = self._model
        outputs, leaves = model.forward(passes, [turn.state for turn in turns])
        if passes[0].has_graph:
            self._open.append(leaves)
        return outputs

    def _backward(self, turns: Sequence[Turn]) -> list[None]:
        opened, self._open = self._open, []
        for leaves in opened:
            leaves.backward()
        self._remove_gone()
        return [None] * len(turns)


class Seat:
    """A run's place among those that compute together."""

    def __init__(self, passes: SharedPasses, turn: Turn, frozen: FrozenPart):
        """Create the place; `SharedPasses.join` does."""
        self._passes = passes
        self._turn = turn
        self._frozen = frozen
        self._is_alone = False

    def forward(self, adapter: bool, inputs: Inputs, dtype: torch.dtype | None) -> Any:
        """Return the outputs of the backbone, cut from the graph; None if stacking gains nothing.

        Args:
            adapter: Whether the run's adapter acts.
            inputs: The arguments of the backbone's forward.
            dtype: That of autocast; None where it is off.
        """
        rows, tokens = size_of(inputs)
        if rows * tokens >= self._passes.most_tokens:
            self.compute_alone()
            return None
        self._is_alone = False
        self._turn.do_little(True)
        name = self._turn.name
        adapter_name = name if adapter else None
        beyond = beyond_limits(inputs, self._passes.limits)
        below = below_of(self._frozen, inputs, dtype, beyond, self._ask)
        has_graph = torch.is_grad_enabled()
        return self._ask(Pass(name, adapter_name, inputs, has_graph, dtype, below, beyond))

    def compute_alone(self) -> None:
        """Let the run compute its next pass, its losses and its gradients itself."""
        self._is_alone = True
        self._turn.do_little(False)

    def losses(
        self, output: OutputLoss, token_loss: TokenLoss, hidden: Tensor, targets: Tensor
    ) -> Tensor | None:
        """Return the losses of tokens, (tokens,), with the graph of the inputs of the output layer.

        None if the run has computed these inputs alone.

        Args:
            output: The output layer, which is not trained.
            token_loss: The loss of a token.
            hidden: (tokens, in).
            targets: Token ids, (tokens,).
        """
        if self._is_alone:
            return None
        request = _Losses(output, token_loss, hidden.detach(), targets)
        return known_values(hidden, *self._ask(request))

    def backward(self) -> None:
        """Pass the gradients of the outputs on to the adapters."""
        self._ask(_Backward())

    def _ask(self, request: Any) -> Any:
        return self._passes.turns.ask(self._turn, request)


def _losses_and_gradients(turns: Sequence[Turn]) -> list[tuple[Tensor, Tensor]]:
    """Compute the losses of all runs' tokens, and return those of each."""
    requests: list[_Losses] = [turn.request for turn in turns]
    first = requests[0]
    hidden = torch.cat([one.hidden for one in requests])
    targets = torch.cat([one.targets for one in requests])
    losses, gradients = first.output.losses_and_gradients(hidden, targets, first.token_loss)
    counts = [len(one.targets) for one in requests]
    return list(zip(losses.split(counts), gradients.split(counts), strict=True))


def _answer(turns: Sequence[Turn], compute: _Compute, *, is_repeatable: bool = True) -> None:
    """Answer requests by what is computed for all of them, or by the error.

    What is repeatable is then computed for each alone, so that only the error's cause has it.
    """
    try:
        answers = compute(turns)
    except Exception as error:
        if is_repeatable and len(turns) > 1:
            logging.getLogger(__name__).debug("What several runs share has failed.", exc_info=True)
            for turn in turns:
                _answer([turn], compute)
            return
        for turn in turns:
            turn.fail(error)
        return
    for turn, answer in zip(turns, answers, strict=True):
        turn.succeed(answer)

"""One model over the shared base that carries the adapters of all runs, and runs their batches."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lorakit.injection import adapter_rows
from lorakit.injection.activation import remove_adapters
from lorakit.injection.detached import adapter_in_place, attach_adapter
from lorakit.layers.executors.separate_batches import SeparateBatches
from lorakit.models.same_weights import copy_over_same_weights
from lorakit.training.frozen_part.blocks import has_dropout
from lorakit.training.objectives.reference import copy_base_dropout
from lorakit.training.together.dropout_by_run import DropoutByRun
from lorakit.training.together.frozen_below import (
    Below,
    Examples,
    Found,
    run_frozen_blocks,
    standing_below,
)
from lorakit.training.together.leaves import Leaves
from lorakit.training.together.process_state import ProcessState, RandomState
from lorakit.training.together.stacking import (
    Inputs,
    Stacked,
    kind_of,
    map_tensors,
    stack,
)

_SHORT_TOKENS = 64
"""Over so many tokens and in bfloat16 on a CPU, attention's gradients take a quarter of the time if
torch multiplies the matrices of all heads at once, instead of block by block of each head."""


@dataclass
class Pass:
    """One run's forward pass.

    Attributes:
        run: Name of the run.
        adapter: The adapter of its rows: the run's name, or None for the base alone.
        inputs: What its backbone is called with.
        has_graph: Whether gradients will be needed.
        autocast_dtype: dtype of autocast; None where it is off.
        below: What stands for the blocks below its first adapted one; None if they run.
        beyond: Which limits of positions it exceeds; see `position_limits`.
    """

    run: str
    adapter: str | None
    inputs: Inputs
    has_graph: bool
    autocast_dtype: torch.dtype | None
    below: Below | None = None
    beyond: tuple[bool, ...] = ()

    @property
    def order(self) -> int:
        """Evaluations come first, so that runs that train stay in step."""
        return 2 if self.has_graph else 1

    @property
    def kind(self) -> tuple[object, ...]:
        """What passes must have in common to be computed as one."""
        below = () if self.below is None else self.below.kind
        start = (self.has_graph, self.autocast_dtype, below, self.beyond)
        return (*start, *kind_of(self.inputs))


class StackedModel:
    """A further tree of modules over the base's weights, with the very updates of all runs.

    Gradients so arrive at the parameters that the run's own optimizer has.
    """

    def __init__(self, base: nn.Module, device: torch.device):
        """Create the model.

        Args:
            base: The base without adapters; its weights are shared, and it is not changed.
            device: Where it runs.
        """
        self._model = copy_over_same_weights(base)
        self._device = device
        for module in self._model.modules():
            for name, buffer in module._buffers.items():  # the weights are there already
                module._buffers[name] = None if buffer is None else buffer.to(device)
        self._backbone: nn.Module = backbone_of(self._model)
        self._modules = [*self._model.modules()]
        self._drops = has_dropout(self._model)
        self._repeats = False

    def attach(self, run: str, model: nn.Module) -> None:
        """Carry the adapter that acts in a run's model."""
        self._checkpoint_like(model)
        copy_base_dropout(self._model, model)  # preferences turn it off
        adapter = adapter_in_place(model, "default")
        # A copy's modules belong to one tree; its parameters may be in two.
        copies = tuple(
            replace(each, copy=copy_over_same_weights(each.copy)) for each in adapter.copies
        )
        attach_adapter(self._model, replace(adapter, name=run, copies=copies))

    def _checkpoint_like(self, model: nn.Module) -> None:
        """Checkpoint activations where a run's model does."""
        for path, module in model.named_modules():
            if getattr(module, "gradient_checkpointing", False):
                twin: Any = self._model.get_submodule(path)
                twin.gradient_checkpointing = self._repeats = True
                twin._gradient_checkpointing_func = module._gradient_checkpointing_func

    def detach(self, run: str) -> None:
        """Carry the adapter no longer."""
        remove_adapters(self._model, (run,))

    def forward(
        self, passes: Sequence[Pass], states: Sequence[ProcessState]
    ) -> tuple[list[Any], Leaves]:
        """Run passes of the same kind as one; return the output of each, and what backward needs.

        Args:
            passes: The passes.
            states: The process's state as each run has left it; what is drawn here moves it on.
        """
        stacked = stack([one.inputs for one in passes])
        names = [
            one.adapter
            for one, part in zip(passes, stacked.parts, strict=True)
            for _ in range(part.rows)
        ]
        random = {one.run: RandomState(state) for one, state in zip(passes, states, strict=True)}
        batches = SeparateBatches(stacked.own_tokens, lambda run: random[run].draw_seed())
        dropping = nullcontext()
        if self._drops and passes[0].has_graph:
            dropping = DropoutByRun(stacked, [*random.values()])
        first = passes[0]
        for module in self._modules:
            module.training = first.has_graph
        with (
            torch.set_grad_enabled(first.has_graph),
            _autocast(self._device, first.autocast_dtype),
            adapter_rows(self._model, names, batches=batches) as rows,
            standing_below(self._model, self._modules, [one.below for one in passes], stacked),
            dropping,
            self._attention(stacked, first),
        ):
            outputs = self._backbone(**stacked.inputs)
        for state in random.values():
            state.write_back()
        leaves = Leaves(stacked, [one.run for one in passes], rows if self._repeats else None)
        return [
            map_tensors(lambda output, run=one.run: leaves.cut(output, run), outputs)
            for one in passes
        ], leaves

    def _attention(self, stacked: Stacked, one: Pass) -> AbstractContextManager[Any]:
        """Let torch compute attention the faster way, where backward finds what forward has saved.

        Dropout would draw other numbers, and checkpointing runs blocks again outside of this.
        """
        dtype = one.autocast_dtype or getattr(self._model, "dtype", None)
        if (
            (self._device.type, dtype) != ("cpu", torch.bfloat16)
            or stacked.tokens > _SHORT_TOKENS
            or not one.has_graph
            or self._drops
            or self._repeats
        ):
            return nullcontext()
        return sdpa_kernel(SDPBackend.MATH)

    @torch.no_grad()
    def hidden_states(self, requests: Sequence[Examples]) -> list[list[Found]]:
        """Run the blocks below for examples of several runs; see `run_frozen_blocks`."""
        for module in self._modules:
            module.training = False

        def run(stacked: Stacked) -> None:
            with (
                _autocast(self._device, requests[0].autocast_dtype),
                adapter_rows(self._model, [None] * stacked.rows),
            ):
                self._backbone(**stacked.inputs)

        return run_frozen_blocks(self._model, requests, run)


def backbone_of(model: Any) -> Any:
    """Return the part of a transformers model below its head; the model itself if it has none."""
    return getattr(model, "base_model", model)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)

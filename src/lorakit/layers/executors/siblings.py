"""Layers that read the same activation: the first one called computes for the others.

A model calls q_proj, k_proj and v_proj one after the other with the very same tensor. Computed as
one autograd node they read it once, apply dropout once, and sum up its gradient in one buffer. So
the first of them that is called computes the group, and the others pick up their results.

The calls with one input are a round. A result is returned once, in its round, for the very tensor
it was computed from, and only while nothing that it depends on has changed; otherwise a new round
begins. Results that are not picked up are discarded when the next round begins, or when backward
has used up their graph.

What a call computes depends on the calls of its round alone, and a round never reaches into a
checkpoint or out of one. So the second pass of a checkpoint saves the tensors that the first one
did, whatever was called before. Over many rounds the group learns which layers should leave and
in which order the others are called; it changes only after the factors have changed.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import Variable
from torch.compiler import is_compiling
from torch.utils.checkpoint import CheckpointFunction

from lorakit.layers.described import DescribedLayer
from lorakit.layers.executors.single import run_single
from lorakit.layers.hooks import brings_input_or_weights
from lorakit.layers.updates.low_rank_update import LowRankUpdate, shared_seed
from lorakit.ops import low_rank_linears
from lorakit.ops.compute_dtype import autocast_dtype
from lorakit.ops.quantized import QuantizedWeight

_MISSES_ALLOWED = 3
_PLAIN = (Tensor, torch.nn.Parameter, FakeTensor)
"""Types of weights that can be read before their layer is called; sharded ones cannot."""


class SiblingGroup:
    """Some layers of one parent, expected to be called with the same input in each forward pass.

    Attributes:
        members: The layers; at first in the order of their names, later in that of their calls.
    """

    def __init__(self, members: list[DescribedLayer]):
        self.members = members
        self._round: _Round | None = None
        self._hits: Counter[int] = Counter()
        self._misses: Counter[int] = Counter()
        self._called_in_order: list[int] = []
        self._learnt_at: list[int] = []
        self._has_dropout = False
        self._drops_since = -1

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles of a model contain the group, never results of a running pass.
        return {"members": self.members}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["members"])

    @property
    def _waiting(self) -> dict[int, _Waiting]:
        return {} if self._round is None else self._round.waiting

    def leave(self, layer: DescribedLayer) -> None:
        """Take a layer out of the group."""
        self.members = [member for member in self.members if member is not layer]
        self._round = None
        layer.siblings = None
        layer.choose_executor()

    def __call__(self, layer: DescribedLayer, x: Tensor) -> Tensor:
        """Return the output of `layer`, which has acting updates, for x."""
        # Without gradients, sharing takes more time than reading x once saves, but a mask is shared
        # all the same: checkpointing runs the layer without gradients first, then with them.
        if is_compiling() or not (torch.is_grad_enabled() or self._drops()):
            return run_single(layer, x)
        # A layer that is not a member is a copy that shares the group.
        if brings_input_or_weights(layer) or layer not in self.members:
            return _compute([layer], x)[0]
        current = self._round
        if current is None or not current.goes_on_with(layer, x):
            # In this order: the round that ends may belong to the previous step.
            self._apply_what_was_learnt()
            if current is not None:
                self._end(current)
            current = self._round = _Round(x)
        current.called.append(id(layer))
        waiting = current.waiting.pop(id(layer), None)
        if waiting is None:
            return self._lead(layer, x, current)
        self._hits[id(layer)] += 1
        current.leader = None
        return waiting.output

    def _drops(self) -> bool:
        """Return whether dropout currently acts on a member's input."""
        if self._drops_since != LowRankUpdate.exchanges:
            acting = (update for one in self.members for update in one.acting_updates())
            self._has_dropout = any(update.drops for update in acting)
            self._drops_since = LowRankUpdate.exchanges
        return self._has_dropout

    def _lead(self, leader: DescribedLayer, x: Tensor, current: _Round) -> Tensor:
        """Compute for a layer, and for those that come after it and have no result yet."""
        stays = leader in self.members
        later = self.members[self.members.index(leader) + 1 :] if stays else []
        computed = {*current.called, *current.waiting}
        joining = [m for m in later if id(m) not in computed and _may_join(m, leader, x)]
        outputs = _compute([leader, *joining], x)
        for member, output in zip(joining, outputs[1:], strict=True):
            current.waiting[id(member)] = _Waiting(*_read(member), output)
        if joining:
            current.leader = id(leader)
            end = self._ending(current)
            if outputs[0].grad_fn is not None:
                # Backward frees what its node has saved, so waiting results become useless.
                outputs[0].grad_fn.register_prehook(lambda _: end())
            if torch._C._current_graph_task_id() >= 0:
                # A checkpoint's second pass, which may stop before the others are called.
                Variable._execution_engine.queue_callback(end)
        return outputs[0]

    def _ending(self, current: _Round) -> Callable[[], None]:
        """Return a function that ends a round if it still exists, without keeping it alive."""
        end, there = weakref.WeakMethod(self._end), weakref.ref(current)

        def end_round() -> None:
            method, still = end(), there()
            if method is not None and still is not None:
                method(still)

        return end_round

    def _end(self, ended: _Round) -> None:
        """Discard results that were not picked up, and learn from the round."""
        if self._round is ended:
            self._round = None
        if ended.waiting:
            # If none was picked up, the leader read something else.
            missed = [*ended.waiting] if ended.leader is None else [ended.leader]
            self._misses.update(missed)
            self._learnt_at = self._versions()
        order = [id(member) for member in self.members if id(member) in ended.called]
        if order != ended.called:
            self._called_in_order = ended.called
            self._learnt_at = self._versions()
        ended.waiting = {}

    def _apply_what_was_learnt(self) -> None:
        """Remove layers that cause more misses than hits, and adopt the order of the calls.

        Only after the factors have changed: until then a checkpoint may make its second pass.
        """
        late = [
            member
            for member in self.members
            if self._misses[id(member)] >= max(_MISSES_ALLOWED, self._hits[id(member)])
        ]
        if not (late or self._called_in_order) or self._versions() == self._learnt_at:
            return
        by_id = {id(member): member for member in self.members}
        called = [by_id[one] for one in self._called_in_order if one in by_id]
        in_order = iter(called)
        self.members = [next(in_order) if one in called else one for one in self.members]
        self._called_in_order = []
        for member in late:
            self.leave(member)
        self._learnt_at = self._versions()

    def _versions(self) -> list[int]:
        updates: list[Any] = [u for member in self.members for u in member.updates.values()]
        return [u.lora_B._version for u in updates if not u.lora_B.is_inference()]


class _Round:
    """The calls of a group's layers with one input, in one pass.

    Attributes:
        called: Ids of the layers that have been called.
        waiting: Results that were computed before their layers were called, by id.
        leader: The layer that computed results for others; None once one was picked up.
    """

    def __init__(self, x: Tensor):
        self.called: list[int] = []
        self.waiting: dict[int, _Waiting] = {}
        self.leader: int | None = None
        self._input = weakref.ref(x)
        self._modes = _modes(x)
        hook = _saving_hook()
        self._hook = None if hook is None else weakref.ref(hook)

    def goes_on_with(self, layer: DescribedLayer, x: Tensor) -> bool:
        """Return whether a call belongs to this round; a repeated call begins a new one."""
        hook = _saving_hook()
        waiting = self.waiting.get(id(layer))
        return (
            self._input() is x
            and self._modes == _modes(x)
            and (hook is None if self._hook is None else hook is self._hook())
            and id(layer) not in self.called
            and (waiting is None or waiting.state == _read(layer)[0])
        )


def _compute(layers: list[DescribedLayer], x: Tensor) -> tuple[Tensor, ...]:
    updates = [layer.acting_updates() for layer in layers]
    seed = shared_seed(update for acting in updates for update in acting)
    pairs = zip(layers, updates, strict=True)
    return low_rank_linears(x, [layer.operands(acting, seed) for layer, acting in pairs])


class _Waiting(NamedTuple):
    """A result that was computed before its layer was called."""

    state: list[object]
    """What it depends on besides the input; see `_read`."""
    tensors: list[Tensor]
    """They are kept, so that no other tensor gets the identity of one."""
    output: Tensor


def _read(layer: DescribedLayer) -> tuple[list[object], list[Tensor]]:
    """Return what a layer's result depends on besides the input, and the tensors among it.

    That is settings, and of each tensor its identity, version and whether it requires gradients.
    """
    settings: list[object] = []
    for update in layer.acting_updates():
        settings += [update.scaling, update.drop_probability if update.drops else 0.0]
    tensors = _tensors(layer)
    return [*settings, *((id(tensor), *_state(tensor)) for tensor in tensors)], tensors


def _modes(x: Tensor) -> tuple[object, ...]:
    """Return what a computation with x depends on besides its layers.

    In backward, where checkpoints make their second pass, the number of the backward pass too.
    """
    is_recorded = torch.is_grad_enabled()
    return (
        None if x.is_inference() else _state(x),
        is_recorded,
        torch.is_inference_mode_enabled(),
        autocast_dtype(x.device.type),
        torch._C._current_graph_task_id(),
        None if is_recorded else _reentrant_checkpoint(),
    )


def _state(tensor: Tensor) -> tuple[int, bool]:
    return tensor._version, tensor.requires_grad


def _reentrant_checkpoint() -> weakref.ref[Any] | None:
    """Return the innermost reentrant checkpoint that is in its first pass, or None.

    Only the stack shows that a pass without gradients will be run again with them.
    """
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is CheckpointFunction.forward.__code__:
            return weakref.ref(frame.f_locals["ctx"])
        frame = frame.f_back
    return None


def _saving_hook() -> Any:
    """Return the innermost hook on tensors that are saved for backward, or None.

    Each pass of a non-reentrant checkpoint has a different one.
    """
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)  # type: ignore[attr-defined]  # torch's private name
    return None if hooks is None else hooks[0]  # the one that packs


def _tensors(layer: DescribedLayer) -> list[Tensor]:
    read: list[Any] = [layer.weight, layer.bias]
    for update in layer.acting_updates():
        read += update._parameters.values()
    return [tensor for tensor in read if tensor is not None]


def _may_join(member: DescribedLayer, leader: DescribedLayer, x: Tensor) -> bool:
    """Whether a layer's result can be computed before it is called.

    It cannot where torch does not count the changes of a tensor, as in inference mode.
    """
    updates = member.acting_updates()
    if not updates or brings_input_or_weights(member):
        return False
    weight, leading = member.base_weight(), leader.base_weight()
    return (
        type(weight) is type(leading)
        and (isinstance(weight, QuantizedWeight) or type(weight) in _PLAIN)
        and weight.dtype == leading.dtype
        and weight.device == leading.device
        and weight.shape[1] == leading.shape[1]
        and not any(tensor.is_inference() for tensor in (x, *_tensors(member)))
    )

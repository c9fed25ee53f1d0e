"""Layers that read the same activation: the first one called computes for all of them.

A model calls q_proj, k_proj and v_proj one after the other with the very same tensor. Computed as
one autograd node they read it once, drop it once, and sum up its gradient in one buffer. So the
first of them that is called computes the group, and the others pick their results up.

A result is handed out only for the very tensor it was computed from, and only while nothing has
changed that it depends on; otherwise the layer computes on its own. Layers whose results are not
picked up leave the group.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lorakit.layers.update import shared_seed
from lorakit.ops import LinearOperands, low_rank_linears

if TYPE_CHECKING:
    from lorakit.layers.adapted import AdaptedLayer

_MISSES_ALLOWED = 3


class SiblingGroup:
    """Some layers of one parent, expected to be called with the same input in each forward pass.

    Attributes:
        members: The layers, in the order they are called in.
    """

    def __init__(self, members: list[AdaptedLayer]):
        self.members = members
        self._waiting: dict[int, _Waiting] = {}
        self._misses: dict[int, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles of a model carry the group, never results of a pass under way.
        return {"members": self.members}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["members"])

    def leave(self, layer: AdaptedLayer) -> None:
        """Take a layer out of the group."""
        self.members = [member for member in self.members if member is not layer]
        self._waiting = {}

    def output(self, layer: AdaptedLayer, x: Tensor) -> Tensor:
        """Return what `layer` makes of x; it has acting updates."""
        waiting = self._waiting.pop(id(layer), None)
        if waiting is not None and waiting.holds_for(layer, x):
            self._misses.pop(id(layer), None)
            return waiting.output
        if waiting is not None:
            self._count_misses([id(layer)])
        else:
            self._count_misses(list(self._waiting))
        return self._compute(layer, x)

    def _compute(self, leader: AdaptedLayer, x: Tensor) -> Tensor:
        self._waiting = {}
        later = self.members[self.members.index(leader) + 1 :] if leader in self.members else []
        joining = [leader, *(member for member in later if _may_join(member, leader, x))]
        updates = [member.acting_updates() for member in joining]
        seed = shared_seed(update for own in updates for update in own)
        operands = []
        for member, own in zip(joining, updates, strict=True):
            terms, bias = member.operands(own, seed)
            operands.append(LinearOperands(member.weight, bias, terms))
        outputs = low_rank_linears(x, operands)
        for member, output in zip(joining[1:], outputs[1:], strict=True):
            self._waiting[id(member)] = _Waiting(weakref.ref(x), _state(member, x), output)
        return outputs[0]

    def _count_misses(self, missed: list[int]) -> None:
        """Let layers go that, time after time, were computed in vain."""
        for key in missed:
            self._misses[key] = self._misses.get(key, 0) + 1
            if self._misses[key] >= _MISSES_ALLOWED:
                self.members = [member for member in self.members if id(member) != key]


class _Waiting(NamedTuple):
    """A result that was computed before its layer was called."""

    input: weakref.ref[Tensor]
    state: tuple[object, ...]
    output: Tensor

    def holds_for(self, layer: AdaptedLayer, x: Tensor) -> bool:
        return self.input() is x and self.state == _state(layer, x)


def _may_join(member: AdaptedLayer, leader: AdaptedLayer, x: Tensor) -> bool:
    """Whether a layer's result can be computed before it is called.

    Not if a hook may change its input or bring its weights, as those of accelerate and FSDP do.
    """
    weight = member.weight
    return (
        not x.is_inference()
        and bool(member.acting_updates())
        and not member._forward_pre_hooks
        and "_hf_hook" not in vars(member)
        and type(weight) is type(leader.weight)
        and type(weight) in (Tensor, torch.nn.Parameter)
        and weight.dtype == leader.weight.dtype
        and weight.device == leader.weight.device
        and weight.shape[1] == leader.weight.shape[1]
    )


def _state(layer: AdaptedLayer, x: Tensor) -> tuple[object, ...]:
    """Return what a result depends on: the versions of its tensors and the modes it was made in."""
    parts: list[object] = [torch.is_grad_enabled(), torch.is_autocast_enabled(x.device.type)]
    tensors = [x, layer.weight, layer.bias]
    for update in layer.acting_updates():
        parts += (id(update), update.scaling, update.drops)
        tensors += [update.lora_A, update.lora_B, update.bias]
    parts += [(id(tensor), tensor._version) for tensor in tensors if tensor is not None]
    return tuple(parts)

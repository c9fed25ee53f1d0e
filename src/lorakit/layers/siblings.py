"""Layers that read the same activation: the first one called computes for all of them.

A model calls q_proj, k_proj and v_proj one after the other with the very same tensor. Computed as
one autograd node they read it once, drop it once, and sum up its gradient in one buffer. So the
first of them that is called computes the group, and the others pick their results up.

A result is handed out only for the very tensor it was computed from, and only while nothing has
changed that it depends on; otherwise the layer computes on its own. What nobody picks up is
discarded when the group computes again, or when backward has used its graph up. Layers leave a
group that computes in vain.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lorakit.layers.magnitude import norms_of, runs_as_one_product
from lorakit.layers.update import shared_seed
from lorakit.ops import LinearOperands, low_rank_linears
from lorakit.ops.low_rank import autocast_dtype
from lorakit.ops.magnitude import scaled_rows
from lorakit.ops.quantized import QuantizedWeight

if TYPE_CHECKING:
    from lorakit.layers.adapted import AdaptedLayer

_MISSES_ALLOWED = 3
_PLAIN = (Tensor, torch.nn.Parameter, FakeTensor)
"""What a weight may be that can be read before its layer is called; those sharded may not."""


class SiblingGroup:
    """Some layers of one parent, expected to be called with the same input in each forward pass.

    Attributes:
        members: The layers, in the order they are called in.
    """

    def __init__(self, members: list[AdaptedLayer]):
        self.members = members
        self._waiting: dict[int, _Waiting] = {}
        self._leader: AdaptedLayer | None = None
        self._hits: Counter[int] = Counter()
        self._misses: Counter[int] = Counter()
        self._missed_at: list[int] = []

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
        # A layer that is no member is a copy that shares the group.
        if _is_hooked(layer) or not any(member is layer for member in self.members):
            return _compute([layer], x)[0]
        waiting = self._waiting.get(id(layer))
        if waiting is not None and waiting.holds_for(layer, x):
            del self._waiting[id(layer)]
            self._hits[id(layer)] += 1
            self._leader = None
            return waiting.output
        self._discard()
        self._let_go()
        return self._lead(layer, x)

    def _lead(self, leader: AdaptedLayer, x: Tensor) -> Tensor:
        """Compute for a layer, and for those of the group that come after it."""
        places = [place for place, member in enumerate(self.members) if member is leader]
        later = self.members[places[0] + 1 :] if places else []
        joining = [leader, *(member for member in later if _may_join(member, leader, x))]
        outputs = _compute(joining, x)
        self._leader = leader
        for member, output in zip(joining[1:], outputs[1:], strict=True):
            self._waiting[id(member)] = _Waiting(weakref.ref(x), _read(member, x), output)
        if self._waiting and outputs[0].grad_fn is not None:
            group: weakref.ref[SiblingGroup] = weakref.ref(self)
            outputs[0].grad_fn.register_prehook(lambda _: _discard(group))
        return outputs[0]

    def _discard(self) -> None:
        """Let go of the results that nobody has picked up, and count whose fault that is."""
        if not self._waiting:
            return
        # Where none was picked up it was the leader that read something else.
        missed = list(self._waiting) if self._leader is None else [id(self._leader)]
        self._misses.update(missed)
        self._missed_at = self._versions()
        self._waiting = {}

    def _let_go(self) -> None:
        """Let layers go that cause more misses than hits.

        Not before the factors have changed: the second pass of a checkpoint has to save the very
        tensors that its first pass did.
        """
        late = [
            member
            for member in self.members
            if self._misses[id(member)] >= max(_MISSES_ALLOWED, self._hits[id(member)])
        ]
        if late and self._versions() != self._missed_at:
            for member in late:
                self.leave(member)
                member.siblings = None

    def _versions(self) -> list[int]:
        updates: list[Any] = [u for member in self.members for u in member.updates.values()]
        return [u.lora_B._version for u in updates if not u.lora_B.is_inference()]


def _compute(layers: list[AdaptedLayer], x: Tensor) -> tuple[Tensor, ...]:
    updates = [layer.acting_updates() for layer in layers]
    seed = shared_seed(update for own in updates for update in own)
    operands, scales = [], []
    for layer, own in zip(layers, updates, strict=True):
        terms, bias, magnitudes = layer.operands(own, seed)
        is_scaled = magnitudes[0] is not None
        operands.append(LinearOperands(layer.base_weight(), None if is_scaled else bias, terms))
        scales.append((magnitudes[0], norms_of(layer, own[0], terms[0]), bias) if is_scaled else ())
    outputs = low_rank_linears(x, operands)
    scaled = zip(outputs, scales, strict=True)
    return tuple(scaled_rows(v, *scale) if scale else v for v, scale in scaled)


def _discard(group: weakref.ref[SiblingGroup]) -> None:
    # Of a group: backward frees what its node has saved, so results that wait are of no use.
    there = group()
    if there is not None:
        there._discard()


class _Waiting(NamedTuple):
    """A result that was computed before its layer was called."""

    input: weakref.ref[Tensor]
    read: _Read
    output: Tensor

    def holds_for(self, layer: AdaptedLayer, x: Tensor) -> bool:
        return self.input() is x and self.read.is_same(_read(layer, x))


class _Read(NamedTuple):
    """What a result depends on: the modes it was made in, and its tensors with their versions."""

    modes: list[object]
    tensors: list[Tensor]
    states: list[tuple[int, bool]]

    def is_same(self, other: _Read) -> bool:
        return (
            self.modes == other.modes
            and self.states == other.states
            and all(one is two for one, two in zip(self.tensors, other.tensors, strict=True))
        )


def _read(layer: AdaptedLayer, x: Tensor) -> _Read:
    modes: list[object] = [
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        autocast_dtype(x.device.type),
    ]
    for update in layer.acting_updates():
        modes += [update.scaling, update.drop_probability if update.drops else 0.0]
    tensors = _tensors(layer)
    # The input is left out of the tensors, as its graph must not be kept alive.
    states = [(tensor._version, tensor.requires_grad) for tensor in (x, *tensors)]
    return _Read(modes, tensors, states)


def _tensors(layer: AdaptedLayer) -> list[Tensor]:
    read: list[Any] = [layer.weight, layer.bias]
    for update in layer.acting_updates():
        read += [update.lora_A, update.lora_B, update.bias]
        read += [update.magnitude] if update.has_magnitude else []
    return [tensor for tensor in read if tensor is not None]


def _may_join(member: AdaptedLayer, leader: AdaptedLayer, x: Tensor) -> bool:
    """Whether a layer's result can be computed before it is called.

    Not where torch does not count the changes of a tensor, as it does not in inference mode.
    """
    updates = member.acting_updates()
    if not updates or _is_hooked(member) or not runs_as_one_product(updates):
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


def _is_hooked(layer: AdaptedLayer) -> bool:
    """Whether a hook may change the input or bring weights, as those of accelerate and FSDP do."""
    return bool(
        "_hf_hook" in vars(layer)
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )

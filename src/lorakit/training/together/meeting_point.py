"""Where a run meets the others: the forward of its backbone, and the end of its backward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from lorakit.injection.activation import active_adapters
from lorakit.ops.compute_dtype import autocast_dtype
from lorakit.training.together.stacked_model import backbone_of
from lorakit.training.together.stacking import Inputs, can_be_stacked

_ADAPTER = "default"
_CACHE = "past_key_values"
_EXTRA_OUTPUTS = ("output_hidden_states", "output_attentions", "output_router_logits")


class Meeting(Protocol):
    """What the run asks the others for."""

    def begin(self) -> None:
        """The run is ready for its first step."""
        ...

    def forward(self, adapter: bool, inputs: Inputs, dtype: torch.dtype | None) -> Any:
        """Return the outputs of the backbone, with the adapter or without."""
        ...

    def backward(self) -> None:
        """Pass on the gradients of these outputs."""
        ...


@contextmanager
def meeting(trainer: Trainer, meeting: Meeting) -> Iterator[None]:
    """Let a trainer meet others, from the beginning of its training to the end of this block.

    What runs before, such as an initialization from data, runs in the trainer's model alone. So do
    passes that the others cannot share: those of another adapter, or with a cache of keys.
    """
    accelerator: Any = trainer.accelerator
    model: Any = accelerator.unwrap_model(trainer.model)
    backbone: Any = backbone_of(model)
    alone, signature = backbone.forward, inspect.signature(type(backbone).forward)
    gradients: Callable[..., None] = accelerator.backward

    def forward(*args: Any, **kwargs: Any) -> Any:
        inputs = _bound(signature, backbone, args, kwargs)
        acting = active_adapters(model)
        if acting not in ((), (_ADAPTER,)) or not _is_shared(inputs):
            return alone(*args, **kwargs)
        device = next(v for v in inputs.values() if isinstance(v, torch.Tensor)).device
        return meeting.forward(bool(acting), inputs, autocast_dtype(device.type))

    def backward(loss: torch.Tensor, **kwargs: Any) -> None:
        gradients(loss, **kwargs)
        meeting.backward()

    def begin() -> None:
        meeting.begin()
        backbone.forward, accelerator.backward = forward, backward

    callback = _AtBeginning(begin)
    trainer.add_callback(callback)
    try:
        yield
    finally:
        trainer.remove_callback(callback)
        _restore(backbone, "forward", alone)
        vars(accelerator).pop("backward", None)


class _AtBeginning(TrainerCallback):
    def __init__(self, begin: Callable[[], None]):
        self._begin = begin

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin()


def _restore(module: nn.Module, name: str, before: Any) -> None:
    """Undo an attribute of an instance; a method of its class needs none."""
    vars(module).pop(name, None)
    if getattr(module, name) != before:
        setattr(module, name, before)


def _bound(
    signature: inspect.Signature, backbone: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments by name."""
    bound = signature.bind(backbone, *args, **kwargs)
    inputs: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = signature.parameters[name].kind
        inputs |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    if "use_cache" in signature.parameters and not inputs.get(_CACHE):
        inputs["use_cache"] = False
    return {name: value for name, value in inputs.items() if value is not None}


def _is_shared(inputs: Inputs) -> bool:
    return (
        inputs.get(_CACHE) is None
        and not any(inputs.get(name) for name in _EXTRA_OUTPUTS)
        and can_be_stacked(inputs)
    )

"""Where a run meets the others: the forward of its backbone, and the end of its backward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor
from transformers import Trainer, TrainerCallback

from lorakit.injection.activation import active_adapters
from lorakit.ops.compute_dtype import autocast_dtype
from lorakit.training.step import OutputStep
from lorakit.training.together.shared_passes import Seat
from lorakit.training.together.stacked_model import backbone_of
from lorakit.training.together.stacking import Inputs, can_be_stacked

_ADAPTER = "default"
_CACHE = "cache"
_EXTRA_OUTPUTS = ("output_hidden_states", "output_attentions", "output_router_logits")


@contextmanager
def meeting(trainer: Trainer, join: Callable[[], Seat]) -> Iterator[None]:
    """Let a trainer meet others, from the beginning of its training to the end of this block.

    What runs before, such as an initialization from data, runs in the trainer's model alone. So do
    passes that the others cannot share: those of another adapter, or with a cache of keys.

    Args:
        trainer: The trainer.
        join: Called when training begins; returns those that it meets.
    """
    with ExitStack() as met:
        callback = _AtBeginning(lambda: met.enter_context(_meet(trainer, join())))
        trainer.add_callback(callback)
        met.callback(trainer.remove_callback, callback)
        yield


@contextmanager
def _meet(trainer: Any, others: Seat) -> Iterator[None]:
    """Replace the trainer's forward, backward and loss by requests inside the block."""
    accelerator: Any = trainer.accelerator
    model: Any = accelerator.unwrap_model(trainer.model)
    step: Any = getattr(trainer, "step", None)

    def backward(loss: Tensor, **kwargs: Any) -> None:
        gradients(loss, **kwargs)
        others.backward()

    gradients: Callable[..., None] = accelerator.backward
    accelerator.backward = backward
    if isinstance(step, OutputStep):
        step.output.losses_elsewhere = others.losses
    try:
        with meeting_in_forward(model, others):
            yield
    finally:
        accelerator.backward = gradients
        if isinstance(step, OutputStep):
            step.output.losses_elsewhere = None


@contextmanager
def meeting_in_forward(model: Any, others: Seat) -> Iterator[None]:
    """Let a model's backbone ask others for its outputs inside the block."""
    backbone: Any = backbone_of(model)
    alone, signature = backbone.forward, inspect.signature(type(backbone).forward)

    def forward(*args: Any, **kwargs: Any) -> Any:
        inputs = _bind_arguments(signature, backbone, args, kwargs)
        acting = active_adapters(model)
        if acting not in ((), (_ADAPTER,)) or not _is_shared(inputs):
            others.compute_alone()
            return alone(*args, **kwargs)
        device = next(v for v in inputs.values() if isinstance(v, Tensor)).device
        outputs = others.forward(bool(acting), inputs, autocast_dtype(device.type))
        return alone(*args, **kwargs) if outputs is None else outputs

    was_replaced = "forward" in vars(backbone)
    backbone.forward = forward
    try:
        yield
    finally:
        backbone.forward = alone
        if not was_replaced:
            del backbone.forward


class _AtBeginning(TrainerCallback):
    def __init__(self, begin: Callable[[], object]):
        self._begin = begin

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin()


def _bind_arguments(
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

"""MLPs of transformers models, run as one autograd node while their layers are adapted."""

from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorakit.layers.bitsandbytes_storage import quantized_weight
from lorakit.layers.class_swap import mixed_class, swap_class
from lorakit.layers.described import DescribedLayer
from lorakit.layers.hooks import has_foreign_forward, has_global_hooks, is_intercepted
from lorakit.layers.replaced import ReplacedModule, plain_class_of
from lorakit.layers.updates.low_rank_update import LowRankUpdate, are_one_product, shared_seed
from lorakit.ops import LinearOperands, low_rank_mlp
from lorakit.ops.mlp import Activation
from lorakit.ops.quantized import Weight


def _gated(self: Any, x: Any) -> Any:
    down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
    return down_proj


def _gated_at_once(self: Any, x: Any) -> Any:
    return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def _gpt2(self: Any, hidden_states: Any) -> Any:
    hidden_states = self.c_fc(hidden_states)
    hidden_states = self.act(hidden_states)
    hidden_states = self.c_proj(hidden_states)
    hidden_states = self.dropout(hidden_states)
    return hidden_states


_FORWARDS: dict[Any, tuple[tuple[str, ...], str, str, str | None]] = {
    _gated: (("gate_proj", "up_proj"), "down_proj", "act_fn", None),
    _gated_at_once: (("gate_proj", "up_proj"), "down_proj", "act_fn", None),
    _gpt2: (("c_fc",), "c_proj", "act", "dropout"),
}
"""Forwards known to be this formula, with the names of (inner layers), the layer back to the
model's width, the activation, and a dropout behind it. A class whose forward compiles to the same
instructions is such an MLP, whatever it is called; so Llama's, Qwen's, Mistral's and Gemma's are
one, and a model that changes its forward is not fused."""

_ACTIVATIONS: dict[str, Activation] = {
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.SiLU": "silu",
    "transformers.activations.GELUActivation": "gelu",
    "transformers.activations.GELUTanh": "gelu_tanh",
    "transformers.activations.NewGELUActivation": "gelu_tanh",
    "transformers.activations.SiLUActivation": "silu",
}
"""By the full name of their class, as importing those of transformers is slow."""


class FusedMlp(nn.Module):
    """Mixin for the class of an MLP; runs it as one node where that equals its forward."""

    plain_class: ClassVar[type[nn.Module]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Map (*, hidden) to (*, hidden); takes what the plain forward takes."""
        if torch.compiler.is_compiling():
            return super().forward(*args, **kwargs)
        inner_names, down_name, activation_name, dropout_name = _part_names(self.plain_class)  # type: ignore[misc]  # a known MLP
        inner: list[Any] = [getattr(self, name) for name in inner_names]
        down: Any = getattr(self, down_name)
        activation = activation_of(getattr(self, activation_name))
        x = args[0] if len(args) == 1 and not kwargs else None
        if x is None or activation is None or not _runs_as_one(x, [*inner, down]):
            return super().forward(*args, **kwargs)
        seed = shared_seed(update for layer in inner for update in _updates(layer))
        operands = [_operands(layer, seed) for layer in inner]
        output = low_rank_mlp(x, operands, _operands(down, None), activation)
        return output if dropout_name is None else getattr(self, dropout_name)(output)

    def has_adapted_layers(self) -> bool:
        """Return whether one of its layers carries updates, active or not."""
        return any(isinstance(part, DescribedLayer) for part in self.children())


def is_known_mlp(module: nn.Module) -> bool:
    """Return whether this module's forward is one of the known formulas."""
    return not isinstance(module, FusedMlp) and _part_names(type(module)) is not None


def fuse_in_place(module: nn.Module) -> None:
    """Swap the class of a known MLP so that it runs as one node while its layers are adapted."""
    if not has_foreign_forward(module):
        swap_class(module, mixed_class(FusedMlp, type(module), "Fused"))


def unfuse_in_place(module: nn.Module) -> None:
    """Swap the plain class back.

    A subclass of the fused class, as FSDP makes one, stays: without adapters it runs the plain
    forward.
    """
    mixin, plain, _ = vars(type(module)).get("mixed_of", (None, None, None))
    if mixin is FusedMlp:
        swap_class(module, plain)


def activation_of(module: nn.Module) -> Activation | None:
    """Return which known activation a module is, or None if it is unknown or has hooks."""
    if is_intercepted(module):
        return None
    if type(module) is nn.GELU:
        return "gelu_tanh" if module.approximate == "tanh" else "gelu"
    return _ACTIVATIONS.get(f"{type(module).__module__}.{type(module).__qualname__}")


@cache
def _part_names(cls: type[nn.Module]) -> tuple[tuple[str, ...], str, str, str | None] | None:
    code = getattr(cls.forward, "__code__", None)
    for known, names in _FORWARDS.items():
        same = known.__code__
        if code is not None and (code.co_code, code.co_names) == (same.co_code, same.co_names):
            return names
    return None


def _runs_as_one(x: Tensor, layers: list[nn.Module]) -> bool:
    """Whether the result is the same if the children are not called one by one."""
    updates = [update for layer in layers for update in _updates(layer)]
    if not updates or has_global_hooks():
        return False
    # With dropout also without gradients, as in the first pass of a reentrant checkpoint: the
    # second pass has to draw the same masks.
    if not torch.is_grad_enabled() and not any(update.drops for update in updates):
        return False
    return all(_is_plain_enough(layer, x) for layer in layers)


def _is_plain_enough(layer: nn.Module, x: Tensor) -> bool:
    if isinstance(layer, ReplacedModule) or is_intercepted(layer):
        return False  # a trained copy, or a hook, may run instead of it
    if not are_one_product(_updates(layer)):
        return False
    weight = _weight_of(layer)
    if isinstance(weight, Tensor) and type(weight) not in (Tensor, nn.Parameter):
        return False
    return weight is not None and weight.device == x.device


def _weight_of(layer: Any) -> Weight | None:
    """Return the weight of a linear layer as (out, in), or None for a layer of another kind."""
    if isinstance(layer, DescribedLayer):
        is_linear = issubclass(layer.plain_class, nn.Linear | Conv1D)
        return layer.base_weight() if is_linear else None
    kind = plain_class_of(layer)
    if kind is nn.Linear:
        return layer.weight
    if kind is Conv1D:
        return layer.weight.t()
    return quantized_weight(layer)


def _operands(layer: Any, seed: Tensor | None) -> LinearOperands:
    weight: Any = _weight_of(layer)
    updates = _updates(layer)
    if not updates:
        return LinearOperands(weight, layer.bias, ())
    return layer.operands(updates, seed)


def _updates(layer: nn.Module) -> list[LowRankUpdate]:
    return layer.acting_updates() if isinstance(layer, DescribedLayer) else []

"""Copies of the base's modules for an adapter to train."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from lorakit.layers.adapted import AdaptedLayer
from lorakit.layers.kinds.experts import LoraExperts
from lorakit.layers.kinds.parameter import AdaptedParameter
from lorakit.layers.offload import weights_in_place
from lorakit.layers.replaced import ReplacedModule, plain_class_of, restore_in_place
from lorakit.layers.trained_tokens import (
    TrainedTokens,
    TrainedTokensOfEmbedding,
    TrainedTokensOfLinear,
)


def full_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a copy with separate parameters, of the plain class and without other copies.

    Args:
        module: The base's module, replaced or plain.
        memo: Memo of `deepcopy`, shared by the modules of one adapter so that tied parameters stay
            tied.
    """
    # accelerate's hooks hold the whole offloaded model; a copy keeps its own weights instead.
    memo |= {id(part._hf_hook): part._hf_hook for part in module.modules() if _is_hooked(part)}
    # torch copies a fake tensor's storage, of which it has none.
    memo |= {
        id(p): nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad)
        for p in module.parameters()
        if isinstance(p, FakeTensor) and id(p) not in memo
    }
    with weights_in_place(module):
        made = copy.deepcopy(shallow_plain(module), memo)
    for child in list(made.modules()):
        if _is_hooked(child):
            del child._hf_hook
            child.forward = child.__dict__.pop("_old_forward")
        if isinstance(child, AdaptedLayer | LoraExperts) and not isinstance(
            child, AdaptedParameter
        ):
            child.restore_in_place()
        if isinstance(child, ReplacedModule):
            restore_in_place(child)
    return made


def copy_with_own(
    module: nn.Module, parameters: list[str], dtype: torch.dtype | None = None
) -> nn.Module:
    """Return a copy that owns the named direct parameters and shares all others with the base.

    Args:
        module: The base's module, replaced or plain.
        parameters: Names of the parameters to own.
        dtype: dtype of these parameters; None for the base's.
    """
    made = shallow_plain(module)
    for name in parameters:
        parameter = module._parameters[name]
        if parameter is not None:
            made._parameters[name] = nn.Parameter(
                parameter.detach().to(dtype or parameter.dtype, copy=True)
            )
    return made


def copy_with_trained_tokens(
    module: nn.Module, indices: Sequence[int], rows: nn.Parameter, *, is_named: bool
) -> TrainedTokens:
    """Return a module that trains some rows of an embedding, or of a linear layer, for an adapter.

    Args:
        module: The base's module, replaced or plain, adapted or not.
        indices: The rows, each once.
        rows: Their values, (n, dim); the same parameter for tied modules.
        is_named: See `TrainedTokens`.
    """
    if not isinstance(module, nn.Embedding):
        return TrainedTokensOfLinear(rows, indices, is_named=is_named)
    plain = shallow_plain(module)
    if isinstance(plain, AdaptedLayer):
        plain.restore_in_place()
    # The base's class, as some embeddings do more than look up (Gemma's scale the vectors).
    table: Any = plain
    table._parameters["weight"] = rows
    table.num_embeddings = len(indices)
    place_of: dict[int | None, int] = {index: place for place, index in enumerate(indices)}
    table.padding_idx = place_of.get(module.padding_idx)
    return TrainedTokensOfEmbedding(table, indices, is_named=is_named)


def _is_hooked(module: nn.Module) -> bool:
    return "_hf_hook" in vars(module) and "_old_forward" in vars(module)


def shallow_plain(module: nn.Module) -> nn.Module:
    """Return a new module of the plain class that holds the same parameters and children.

    It has none of the trained copies.
    """
    plain = plain_class_of(module)
    made = plain.__new__(plain)
    made.__dict__.update(vars(module))
    for container in ("_parameters", "_buffers", "_modules"):
        made.__dict__[container] = dict(vars(module)[container])
    made._modules.pop("trained_copies", None)
    # Hooks of any kind stay with the base's module, which runs them around the copy, and so does
    # accelerate's, which it runs before the copy acts.
    made.__dict__.update({k: v for k, v in vars(nn.Module()).items() if "hook" in k})
    for name in ("active_copy", "per_row_adapters", "_hf_hook", "_old_forward", "forward"):
        made.__dict__.pop(name, None)
    return made

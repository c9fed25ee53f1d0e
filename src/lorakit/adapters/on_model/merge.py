"""Merging adapters into a model's weights, temporarily or permanently."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from lorakit.adapters.on_model.merged_tokens import write_trained_tokens
from lorakit.errors import AdapterStateError, QuantizationError, first_few
from lorakit.injection import set_adapter
from lorakit.injection.activation import remove_adapters, restoring_activation
from lorakit.injection.state import (
    adapted_layers,
    base_modules,
    replaced_modules,
    require_state,
    require_unmerged,
    unwrap,
)
from lorakit.layers import ReplacedModule, TrainedTokens
from lorakit.layers.adapted import READ_FLAG
from lorakit.layers.bitsandbytes_storage import (
    bits_of,
    dequantize_model,
    forget_deserialization,
    quantized_weight,
)
from lorakit.layers.offload import is_offloaded


@dataclass(frozen=True)
class Merge:
    """Result of a merge.

    Attributes:
        names: Names of the merged adapters.
        layers: Number of layers whose weight changed.
        largest_rounding: Largest absolute rounding error of a merged weight against the float32
            sum, in the weight's units; 0 for float32 bases. For a requantized weight this includes
            the quantization error.
        requantized: Whether the merged weights are quantized.
    """

    names: tuple[str, ...]
    layers: int
    largest_rounding: float
    requantized: bool = False


QuantizedBase = Literal["dequantize", "requantize"]
"""Whether a merged weight of a quantized base becomes dense or is quantized again."""


def merge_adapters(
    model: nn.Module,
    names: str | Sequence[str] | None = None,
    *,
    quantized_base: QuantizedBase | None = None,
) -> Merge:
    """Add adapters to the weights, so that they cost nothing at inference.

    Each weight becomes W0 + Σ s B A, summed in float32 and rounded once. The base's parameters are
    kept until `unmerge_adapters` restores them.

    Args:
        model: A model with adapters.
        names: Names of the adapters; None merges the active ones.
        quantized_base: For a base in 4 or 8 bits: "dequantize" makes the merged weights dense, in
            the dtype of the rest of the model; "requantize" quantizes them again, which costs
            accuracy. Required, as either may be unexpected.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterStateError: The model is merged already, no adapter is active, two adapters train
            the same head, or an update is not a change of a weight (a grouped convolution).
        QuantizationError: The base is quantized and `quantized_base` is missing, or it is given
            and the base is not quantized.

    If it fails, the model and its active adapters are unchanged.

    Source: Hu et al. 2021, arXiv:2106.09685, section 4.1, "No Additional Inference Latency".
    """
    require_unmerged(model, "merge")
    state = require_state(model)
    if not (state.active if names is None else _as_tuple(names)):
        raise AdapterStateError(
            "No adapter is active, so there is nothing to merge. Name the adapters to merge, or "
            "call set_adapter first."
        )
    _require_in_memory(model)
    _require_mergeable(model, state.active if names is None else _as_tuple(names))
    _check_quantized_base(model, quantized_base)
    layers, largest = 0, 0.0
    dtype = _dense_dtype(model)
    with restoring_activation(model, () if names is None else _as_tuple(names)):
        if names is not None:
            set_adapter(model, names)
        try:
            for _, layer in adapted_layers(model):
                if layer.acting_updates():
                    largest = max(largest, layer.merge(dtype, quantized_base == "requantize"))
                    layers += 1
        except BaseException:
            for _, layer in adapted_layers(model):
                layer.unmerge()
            raise
    state.is_merged = True
    return Merge(state.active, layers, largest, quantized_base == "requantize")


def _check_quantized_base(model: nn.Module, quantized_base: QuantizedBase | None) -> None:
    quantized = [path for path, layer in adapted_layers(model) if bits_of(layer)]
    if quantized and quantized_base is None:
        raise QuantizationError(
            f"Cannot merge into {first_few(quantized, 1)}: weights are quantized. "
            'Pass quantized_base="dequantize" to make them dense (they take two to '
            'eight times the memory), or "requantize" to quantize the sum again at a loss.'
        )
    if quantized_base == "requantize" and not quantized:
        raise QuantizationError(
            'Cannot merge with quantized_base="requantize": no adapted layer is quantized. Leave '
            "it out."
        )


def _find_merge_form(model: nn.Module) -> QuantizedBase | None:
    """Return how the quantized weights of a merged model were merged; None if it has none."""
    merged = [
        layer for _, layer in adapted_layers(model) if layer.kept_parameters and bits_of(layer)
    ]
    if not merged:
        return None
    return "dequantize" if quantized_weight(merged[0]) is None else "requantize"


def _dense_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of the weights that are not quantized; None if all are."""
    for _, module in base_modules(model):
        for parameter in module.parameters(recurse=False):
            if parameter.ndim > 1 and parameter.is_floating_point():
                return parameter.dtype
    return None


def _require_in_memory(model: nn.Module) -> None:
    """Reject weights that accelerate reloads, without the merge, in every forward pass."""
    for path, module in (*adapted_layers(model), *replaced_modules(model)):
        if is_offloaded(module):
            raise AdapterStateError(
                f"Cannot merge into {path}: accelerate offloads its weights, expected them in "
                "memory. Load the base without offloading."
            )


def _require_mergeable(model: nn.Module, names: Sequence[str]) -> None:
    """Reject updates that are not a change of a layer's weight."""
    for path, layer in adapted_layers(model):
        obstacle = layer.merge_obstacle()
        if obstacle is not None and any(name in layer.updates for name in names):
            raise AdapterStateError(
                f"Cannot merge into {path}: {obstacle}. Use the adapter unmerged, or leave that "
                "module out of it."
            )


def unmerge_adapters(model: nn.Module) -> None:
    """Restore the base's parameters byte for byte; the adapters act beside them again.

    Raises:
        AdapterStateError: The model is not merged.
    """
    state = require_state(model)
    if not state.is_merged:
        raise AdapterStateError(
            "Cannot unmerge: no adapter is merged into the weights. Call merge_adapters first."
        )
    merged = [(layer, layer.merged_parameters()) for _, layer in adapted_layers(model)]
    try:
        for layer, _ in merged:
            layer.unmerge()
    except BaseException:
        for layer, parameters in merged:
            layer.merge_again(parameters)
        raise
    state.is_merged = False


def merge_and_unload(
    model: nn.Module,
    names: str | Sequence[str] | None = None,
    *,
    quantized_base: QuantizedBase | None = None,
) -> nn.Module:
    """Merge adapters permanently and return the same model with plain layers.

    Trained heads, biases and tokens replace those of the base. A merged weight that was tied to
    another module is untied, also in the model's config; tied embeddings stay tied if only trained
    tokens changed.

    Args:
        model: A model with adapters, merged or not.
        names: Names of the adapters; None merges the active ones. The others are dropped.
        quantized_base: As in `merge_adapters`. With "dequantize" no layer stays quantized,
            adapted or not, so that the model can be saved as an ordinary checkpoint.

    Raises:
        AdapterNameError: There is no such adapter.
        AdapterStateError: No adapter is active, or two of them train the same head.
        QuantizationError: As in `merge_adapters`.
    """
    state = require_state(model)
    if not state.is_merged:
        merge_adapters(model, names, quantized_base=quantized_base)
    elif names is not None and set(_as_tuple(names)) != set(state.active):
        raise AdapterStateError(
            f"Adapters {list(state.active)} are merged already, but {list(_as_tuple(names))} were "
            "requested. Call unmerge_adapters first."
        )
    merged_as = _find_merge_form(model)
    if quantized_base not in (None, merged_as) and merged_as is not None:
        raise AdapterStateError(
            f"The adapters are merged already, with quantized_base={merged_as!r}, but "
            f"{quantized_base!r} was requested. Call unmerge_adapters first."
        )
    model = unwrap(model)
    tied = _tied_parameters(model)
    untied = write_trained_tokens(model)
    for _, layer in adapted_layers(model):
        untied |= any(id(kept) in tied for kept in layer.kept_parameters.values())
        layer.keep_merged()
    for _, module in replaced_modules(model):
        copy = None if module.active_copy is None else module.trained_copies[module.active_copy]
        if copy is not None and not isinstance(copy, TrainedTokens):
            inner_modules = [inner for _, inner in base_modules(module)]
            untied |= any(id(p) in tied for m in inner_modules for p in m.parameters(recurse=False))
            _copy_trained_(module, copy)
    state.is_merged = False
    remove_adapters(model, tuple(state.configs))
    if "dequantize" in (quantized_base, merged_as):
        dequantize_model(model, _dense_dtype(model))
    forget_deserialization(model)
    if untied:
        _record_untied(model)
    return model


def _as_tuple(names: str | Sequence[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _tied_parameters(model: nn.Module) -> set[int]:
    """Return the ids of parameters that more than one module of the base holds."""
    seen: set[int] = set()
    tied: set[int] = set()
    for _, module in base_modules(model):
        parameters = dict(module._parameters) | getattr(module, "kept_parameters", {})
        for parameter in {id(p) for p in parameters.values() if p is not None}:
            (tied if parameter in seen else seen).add(parameter)
    return tied


@torch.no_grad()
def _copy_trained_(module: ReplacedModule, trained: nn.Module) -> None:
    """Give a module the parameters and buffers of its trained copy, in the module's dtypes."""
    for path, source in trained.named_modules():
        target = module.get_submodule(path)
        for name, parameter in source._parameters.items():
            of_base = target._parameters[name]
            if parameter is not None and of_base is not None and parameter is not of_base:
                merged = parameter.detach().to(of_base.dtype, copy=True)
                target._parameters[name] = nn.Parameter(merged, requires_grad=False)
                setattr(target._parameters[name], READ_FLAG, True)  # no longer an initial value
        for name, buffer in source._buffers.items():
            if buffer is not None:
                target._buffers[name] = buffer.detach().clone()


def _record_untied(model: nn.Module) -> None:
    """Record in the model's config that its weights are not tied, and untie the other tied ones.

    The config has one switch for all weights that transformers ties. When it is off, files must
    hold all of them, but transformers omits them while they are one parameter in memory.
    """
    declared = dict(getattr(model, "all_tied_weights_keys", None) or {})
    for module in (model, *model.children()):
        config = getattr(module, "config", None)
        if config is not None and getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
    if not isinstance(model, PreTrainedModel):
        return
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.all_tied_weights_keys = module.get_expanded_tied_weights_keys(all_submodels=True)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    untied = declared.keys() & parameters.keys() - model.all_tied_weights_keys.keys()
    held = {id(parameter) for name, parameter in parameters.items() if name not in untied}
    for name in sorted(untied):
        parameter = parameters[name]
        if id(parameter) in held:
            path, _, last = name.rpartition(".")
            copied = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            model.get_submodule(path)._parameters[last] = copied
        held.add(id(parameter))

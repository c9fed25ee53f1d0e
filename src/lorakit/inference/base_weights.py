"""Load the base weights that an adapter updates, as they were in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lorakit.adapters import Adapter, fit_vocabulary
from lorakit.config import LoraConfig
from lorakit.inference.loaded import find_base
from lorakit.injection import add_adapter
from lorakit.injection.state import adapted_layers
from lorakit.layers import AdaptedLayer
from lorakit.ops.quantized import QuantizedWeight, dense_copy


class BaseWeights(Mapping[str, Tensor]):
    """W0 in float32 by module path, oriented like ΔW; a quantized weight is dequantized on access.

    Attributes:
        how: Storage of the base's weights, such as "float32" or "nf4 (float32)".
    """

    def __init__(self, layers: Mapping[str, AdaptedLayer]) -> None:
        self._layers = layers
        names = {type(layer).base_dtype_name(layer): None for layer in layers.values()}
        self.how = ", ".join(names)

    def __getitem__(self, path: str) -> Tensor:
        layer = self._layers[path]
        weight = layer.base_weight()
        if isinstance(weight, QuantizedWeight):
            return dense_copy(weight, torch.float32)
        return weight.detach().float()

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def load_base_weights(
    path: str | Path, base: str | None = None, *, trust_remote_code: bool = False
) -> BaseWeights:
    """Load an adapter's base as it was in training, and return the weights that are updated.

    A base that was quantized in training is quantized again, because the adapter was trained on the
    quantized W0.

    Args:
        path: A run directory, an adapter directory, or the hub id of an adapter.
        base: Base model; None takes the one the adapter names.
        trust_remote_code: Whether code that comes with the base may run; as for
            `load_for_inference`.

    Raises:
        MissingFileError: The adapter or the base does not exist.
        ConfigError: The adapter names no base or no task, or the base cannot do the task.
        QuantizationError: The base cannot be quantized here as it was in training.
        AdapterMismatchError: The adapter was made for another base.
    """
    source = find_base(path, base, "--base", trust_remote_code=trust_remote_code)
    adapter, settings = source.adapter, source.settings
    model = source.load_base(
        has_head=True,  # heads are not read, so a missing one may be initialized
        dtype=settings.dtype or "auto",
        quantization=settings.quantization,
    )
    fit_vocabulary(model, adapter)
    add_adapter(model, _updates_alone(adapter), trainable=False)
    layers = dict(adapted_layers(model))
    shapes = {path: layer.kernel_shape(layer) for path, layer in layers.items()}
    # The update of a grouped convolution has another shape than its weight.
    grouped = {path for path, shape in shapes.items() if shape is not None and shape.groups > 1}
    return BaseWeights({path: layer for path, layer in layers.items() if path not in grouped})


def _updates_alone(adapter: Adapter) -> Adapter:
    """Return an adapter without trained heads and biases, which may not fit the loaded base."""
    config = LoraConfig(
        r=adapter.config.r,
        rank_pattern=adapter.config.rank_pattern,
        target_modules=tuple(path for path in adapter.factors if path not in adapter.stacked),
        target_parameters=tuple(adapter.stacked),
    )
    return replace(
        adapter, config=config, companions={}, replaced={}, base_weights={}, trained_tokens={}
    )

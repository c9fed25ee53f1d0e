"""Resizing the vocabulary of a base: new embeddings for new tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.older_names import in_names_of
from lorakit.errors import AdapterStateError, QuantizationError
from lorakit.injection.selection.vocabulary import input_embedding, output_layer, rows_needed
from lorakit.injection.state import base_modules, first_adapted
from lorakit.layers.bitsandbytes_storage import bits_of
from lorakit.libraries.logs import logging_errors_only

_SEED = 0
"""Seed of new embeddings, independent of a run's, so that every load of a base gets the same."""


def fit_vocabulary(model: nn.Module, adapter: Adapter) -> int | None:
    """Resize a base's embeddings for an adapter, if necessary; call it before `add_adapter`.

    New embeddings are copied from the adapter's file if it contains base weights, as PEFT's does
    after a resize.

    Args:
        model: A transformers model without adapters.
        adapter: The adapter to be added.

    Returns: The new number of embeddings, or None if there were enough.

    Raises:
        AdapterStateError: The model carries adapters.
        QuantizationError: An embedding or the output layer is quantized.
    """
    adapter = in_names_of(model, adapter)
    needed, there = rows_needed(model, dict(base_modules(model)), adapter)
    if needed <= there:
        return None
    grow_vocabulary(model, needed)
    modules = dict(base_modules(model))
    with torch.no_grad():
        for path, repeated in adapter.base_weights.items():
            weight = getattr(modules.get(path), "weight", None)
            if weight is not None and weight.shape == repeated.shape:
                weight[there:] = repeated[there:].to(weight)
    return needed


def grow_vocabulary(model: nn.Module, rows: int, *, follows_the_old: bool = True) -> None:
    """Add rows to a base's embeddings and output layer, with the same values every time.

    Args:
        model: A transformers model without adapters.
        rows: New number of rows.
        follows_the_old: Sample new rows with the mean and covariance of the existing ones, as
            transformers does by default, and set new biases of an output layer to the mean of the
            old ones; otherwise use the model's initialization.

    Raises:
        AdapterStateError: The model carries adapters.
        QuantizationError: An embedding or the output layer is quantized.

    Source: J. Hewitt 2021, "Initializing new word embeddings for pretrained language models".
    """
    if first_adapted(model) is not None:
        raise AdapterStateError(
            f"Cannot resize the embeddings of this {type(model).__name__} to {rows} rows: it "
            "carries adapters, expected the base alone. Unload them first."
        )
    modules = dict(base_modules(model))
    output = output_layer(model, modules)
    for found in (input_embedding(model, modules), output):
        if found is not None and bits_of(found[1]) is not None:
            raise QuantizationError(
                f"Cannot resize {found[0]} to {rows} rows: it is quantized, expected a dense "
                f"weight. Name it in quantization.skip_modules."
            )
    bias = getattr(None if output is None else output[1], "bias", None)
    old_bias = None if bias is None else bias.detach().clone()
    growing: Any = model
    with torch.random.fork_rng(), logging_errors_only():
        torch.manual_seed(_SEED)
        growing.resize_token_embeddings(rows, mean_resizing=follows_the_old)
    _separate_again(model, modules)
    layer: Any = growing.get_output_embeddings() if output is not None else None
    bias = getattr(layer, "bias", None)
    if follows_the_old and old_bias is not None and bias is not None:
        # No adapter holds it, so it must not depend on the machine.
        with torch.no_grad():
            bias[len(old_bias) :] = old_bias.float().mean().to(bias.dtype)


def _separate_again(model: nn.Module, before: Mapping[str, nn.Module]) -> None:
    """Restore separate embedding modules where a resize has put one module into several places.

    A loaded T5 has three embeddings with one weight, but after a resize one embedding in three
    places, where an adapter would not find the modules it expects.
    """
    embedding = cast(Any, model).get_input_embeddings()
    for path, module in before.items():
        if not isinstance(module, nn.Embedding) or module is embedding:
            continue
        parent, _, name = path.rpartition(".")
        if model.get_submodule(path) is embedding:
            module.weight = embedding.weight
            module.num_embeddings = embedding.num_embeddings
            setattr(model.get_submodule(parent), name, module)

"""Vocabularies that grow: a base whose embeddings get rows for new tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lorakit.adapters.adapter import Adapter
from lorakit.errors import AdapterStateError, QuantizationError
from lorakit.injection.selection.older_names import in_names_of
from lorakit.injection.selection.vocabulary import input_embedding, output_layer, rows_needed
from lorakit.injection.state import base_modules, state_of
from lorakit.layers.bitsandbytes_storage import bits_of
from lorakit.libraries.logs import logging_errors_only

_SEED = 0
"""New rows are drawn with it, whatever the seed of a run: all loads of a base get the same ones."""


def fit_vocabulary(model: nn.Module, adapter: Adapter) -> int | None:
    """Give a base as many embeddings as an adapter needs; call it before `add_adapter`.

    Rows that the adapter's file repeats of its base, as PEFT's does after a resize, are taken over
    where they are new.

    Args:
        model: A transformers model without adapters.
        adapter: The adapter that is to be put on it.

    Returns: The new number of rows, or None where there were enough.

    Raises:
        AdapterStateError: The model carries adapters.
        QuantizationError: An embedding or the output layer is quantised.
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
    """Give a base's embeddings, and its output layer, more rows; the same ones each time.

    Args:
        model: A transformers model without adapters.
        rows: How many they are to have.
        follows_the_old: Draw new rows with the mean and covariance of those there are, as
            transformers does by default; otherwise as the model draws its first weights. New
            biases of an output layer are the mean of the old ones then.

    Raises:
        AdapterStateError: The model carries adapters.
        QuantizationError: An embedding or the output layer is quantised.

    Source: J. Hewitt 2021, "Initializing new word embeddings for pretrained language models".
    """
    if state_of(model) is not None:
        raise AdapterStateError(
            f"Cannot resize the embeddings of this {type(model).__name__} to {rows} rows: it "
            "carries adapters, expected the base alone. Unload them first."
        )
    modules = dict(base_modules(model))
    output = output_layer(model, modules)
    for found in (input_embedding(model, modules), output):
        if found is not None and bits_of(found[1]) is not None:
            raise QuantizationError(
                f"Cannot resize {found[0]} to {rows} rows: it is quantised, expected a dense "
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
        # No adapter carries it, so it must not depend on where it is drawn.
        with torch.no_grad():
            bias[len(old_bias) :] = old_bias.float().mean().to(bias.dtype)


def _separate_again(model: nn.Module, before: Mapping[str, nn.Module]) -> None:
    """Give every place its own embedding back where one has been put into several.

    A T5 that is loaded has three embeddings with one weight, and after a resize one in three
    places, so that adapters of the one would not find their places in the other.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    for path, module in before.items():
        if not isinstance(module, nn.Embedding) or module is embedding:
            continue
        parent, _, name = path.rpartition(".")
        if model.get_submodule(path) is embedding:
            module.weight = embedding.weight
            module.num_embeddings = embedding.num_embeddings
            setattr(model.get_submodule(parent), name, module)

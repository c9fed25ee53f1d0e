"""How large a model's vocabulary is, and how large an adapter needs it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lorakit.injection.selection.sites import AdapterTensors
from lorakit.injection.selection.targets import token_indices_of


def input_embedding(
    model: nn.Module, modules: Mapping[str, nn.Module]
) -> tuple[str, nn.Module] | None:
    """Return path and module of a model's input embedding; None if the model does not say."""
    return _find_layer(model, "get_input_embeddings", modules)


def output_layer(
    model: nn.Module, modules: Mapping[str, nn.Module]
) -> tuple[str, nn.Module] | None:
    """Return path and module of a language model's output layer; None if there is none."""
    return _find_layer(model, "get_output_embeddings", modules)


def _find_layer(
    model: nn.Module, method: str, modules: Mapping[str, nn.Module]
) -> tuple[str, nn.Module] | None:
    try:
        embedding = getattr(model, method)()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return next(((path, m) for path, m in modules.items() if m is embedding and path), None)


def rows_needed(
    model: nn.Module, modules: Mapping[str, nn.Module], adapter: AdapterTensors
) -> tuple[int, int]:
    """Return how many rows an adapter needs a model's embeddings to have, and how many they have.

    Its tensors and token indices imply a size of the vocabulary.

    Returns: (needed, there); needed is 0 if the adapter implies no size, and both are 0 if the
        model has no input embedding.
    """
    found, output = input_embedding(model, modules), output_layer(model, modules)
    if found is None or not isinstance(found[1], nn.Embedding):
        return 0, 0
    sizes = [0]
    ends = [found] if output is None else [found, output]
    for path, _ in ends:
        sizes += [len(t) for t in (adapter.base_weights.get(path),) if t is not None]
        sizes += [len(t) for t in (adapter.replaced.get(f"{path}.weight"),) if t is not None]
        sizes += [index + 1 for index in _indices(adapter, path, is_input=path == found[0])]
    if found[0] in adapter.factors:
        sizes.append(adapter.factors[found[0]][0].shape[1])
    if output is not None and output[0] in adapter.factors:
        sizes.append(adapter.factors[output[0]][1].shape[0])
    return max(sizes), found[1].weight.shape[0]


def _indices(adapter: AdapterTensors, path: str, *, is_input: bool) -> tuple[int, ...]:
    is_of_input = not isinstance(adapter.config.trainable_token_indices, dict)
    if is_of_input and not is_input:
        return ()
    return token_indices_of(adapter.config, path) or ()

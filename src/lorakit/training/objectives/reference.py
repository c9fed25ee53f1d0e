"""Let the reference act: the base without the adapter, or another adapter of the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lorakit.injection import active_adapters, adapter_names, disable_adapters, set_adapter
from lorakit.injection.state import unwrap
from lorakit.layers import LowRankUpdate

REFERENCE = "reference"
"""Name of an adapter that is the reference instead of the base, such as that of a first round."""


def reference_of(model: nn.Module) -> str | None:
    """Return the adapter that is a model's reference, None for the base alone."""
    return REFERENCE if REFERENCE in adapter_names(model) else None


@contextmanager
def reference_acts(model: nn.Module, name: str | None) -> Iterator[None]:
    """Let the reference act inside the block: no second model, and no copy of a weight.

    Without an adapter, trained heads, biases and tokens are those of the base too.

    Args:
        model: The model, possibly wrapped.
        name: The adapter that is the reference, None for the base alone.
    """
    inner = unwrap(model)
    if name is None:
        with disable_adapters(inner):
            yield
        return
    before = active_adapters(inner)
    set_adapter(inner, name)
    try:
        yield
    finally:
        set_adapter(inner, before)


def disable_base_dropout(model: nn.Module) -> None:
    """Set every dropout probability of a base to 0, but not those of updates.

    Dropout would be noise in the ratio of policy and reference. transformers' attention keeps
    probabilities as plain numbers beside the modules, under names such as "attention_dropout".
    """
    for _, module, name in _dropout_rates(model):
        setattr(module, name, 0.0)


def copy_base_dropout(model: nn.Module, other: nn.Module) -> None:
    """Give a model every dropout probability of the base of another one with the same modules."""
    modules = dict(model.named_modules())
    for path, module, name in _dropout_rates(other):
        if path in modules:
            setattr(modules[path], name, getattr(module, name))


def _dropout_rates(model: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """Return (path, module, attribute) of every dropout probability of a base."""
    updates = {id(m) for m in model.modules() if isinstance(m, LowRankUpdate)}
    found: list[tuple[str, nn.Module, str]] = []
    for path, module in model.named_modules():
        if id(module) in updates:
            continue
        values: dict[str, Any] = vars(module)
        is_dropout = isinstance(module, nn.modules.dropout._DropoutNd)
        for name, value in values.items():
            names_dropout = any(word in name for word in ("dropout", "drop_prob", "pdrop"))
            names_dropout |= is_dropout and name == "p"
            if names_dropout and isinstance(value, float):
                found.append((path, module, name))
    return found

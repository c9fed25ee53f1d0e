"""Convolutions whose weight is read where they would have to be called: an update does not act.

Mamba's mixers, and those of some twenty more families in transformers, hand the weight of `conv1d`
to a function of their own; RecurrentGemma's call the layer, but not for the next token.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from torch import nn

from lorakit.errors import TargetError

if TYPE_CHECKING:
    from lorakit.injection.plan import Site


def require_called(modules: Mapping[str, nn.Module], sites: Sequence[Site]) -> None:
    """Refuse convolutions whose weight is read where the layer would have to be called.

    Linear layers are called, or read in ways that injection knows; code that passes on the weight
    of a convolution is known by its source alone.

    Args:
        modules: Of the model, by path.
        sites: What is to be adapted.

    Raises:
        TargetError: The source of a parent reads a layer's weight and calls the layer nowhere, or
            reads a part of its weight.
    """
    for site in sites:
        path, _, name = site.path.rpartition(".")
        parent = modules.get(path)
        if parent is None or site.adapted_class.kernel_shape(site.module) is None:
            continue
        if _bypasses(type(parent), name):
            raise TargetError(
                f"Cannot adapt {site.path}: {type(parent).__name__} reads its weight where it "
                "would have to call the layer, so an update would not act. Leave it out of "
                "target_modules."
            )


@cache
def _bypasses(parent: type[nn.Module], name: str) -> bool:
    source = "\n".join(_source(kind) for kind in parent.__mro__ if issubclass(kind, nn.Module))
    layer = rf"\bself\.{re.escape(name)}\b"
    is_read = re.search(rf"{layer}\.weight\b(?!\.(dtype|device|shape|size|data))", source)
    # Whatever passes the layer itself on may call it elsewhere.
    is_used = re.search(rf"{layer}(?!\s*(=[^=]|\.|:))", source)
    reads_a_part = re.search(rf"{layer}\.weight\[", source)
    return bool(reads_a_part or (is_read and not is_used))


def _source(kind: type) -> str:
    try:
        return "" if kind is nn.Module else inspect.getsource(kind)
    except (OSError, TypeError):  # made at run time, or without its file
        return ""

"""How many of a model's upper layers are adapted: all, the upper half or the upper quarter."""

from __future__ import annotations

from torch import nn

from lorakit.errors import ConfigError
from lorakit.recipes.search_sections import Depth
from lorakit.training.frozen_part.blocks import block_lists

SHARES: dict[Depth, int] = {"all": 1, "upper half": 2, "upper quarter": 4}
"""The share of the layers that is adapted, by its inverse."""


def layers_at(depth: Depth, layers: int) -> tuple[int, ...]:
    """Return the indices of the adapted layers.

    >>> layers_at("upper quarter", 12)
    (9, 10, 11)
    >>> layers_at("upper half", 1)
    (0,)
    """
    return tuple(range(layers - max(1, layers // SHARES[depth]), layers))


def count_layers(model: nn.Module) -> int:
    """Return the number of layers of a model with one list of layers.

    Raises:
        ConfigError: The model has none or several, such as an encoder and a decoder.
    """
    lists = block_lists(model)
    if len(lists) != 1:
        paths = ", ".join(path for path, _ in lists) or "none"
        raise ConfigError(
            f"The upper layers of this {type(model).__name__} are not known: got lists of layers "
            f"{paths}, expected one. Leave study.layers out."
        )
    return len(lists[0][1])

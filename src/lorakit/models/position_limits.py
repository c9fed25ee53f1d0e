"""Rotary position embeddings that depend on the longest row of a batch.

`longrope` has two sets of frequencies. The second acts on all rows of a batch as soon as one of
them is longer than the texts of the first phase of pre-training. (`dynamic` scales frequencies for
rows above `max_position_embeddings`, which `data.max_length` never exceeds.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def position_limits(config: Any) -> tuple[int, ...]:
    """Return the numbers of positions above which a base encodes all rows of a batch otherwise.

    Args:
        config: The configuration of a transformers model, or None.

    Returns: One for each kind of layers with such an encoding; for most bases there is none.
    """
    found: dict[int, None] = {}
    for part in (config, getattr(config, "text_config", None)):
        parameters = getattr(part, "rope_parameters", None) or {}
        by_layer = [value for value in parameters.values() if isinstance(value, Mapping)]
        for one in by_layer or [parameters]:
            if one.get("rope_type") == "longrope":
                found[int(one["original_max_position_embeddings"])] = None
    return tuple(found)


def beyond_limits(inputs: Mapping[str, Any], limits: Sequence[int]) -> tuple[bool, ...]:
    """Return which limits a batch exceeds.

    Args:
        inputs: The arguments of the model by name, with token ids or embeddings.
        limits: See `position_limits`.
    """
    if not limits:
        return ()
    positions = inputs.get("position_ids")
    if isinstance(positions, Tensor):
        last = int(positions.max()) + 1
    else:
        ids, embedded = inputs.get("input_ids"), inputs.get("inputs_embeds")
        last = (embedded if ids is None else ids).shape[1]  # type: ignore[union-attr]  # one of the two is given
    return tuple(last > limit for limit in limits)

"""Rows that come from several batches, stacked: each batch keeps the dropout masks it has alone."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lorakit.errors import AdapterStateError
from lorakit.layers.described import DescribedLayer
from lorakit.layers.updates.low_rank_update import LowRankUpdate


class SeparateBatches:
    """The batches that are stacked in one forward pass, one for each adapter.

    Attributes:
        own_tokens: Tokens of each row in its own batch; what follows is padding.
    """

    def __init__(self, own_tokens: Sequence[int], draw_seed: Callable[[str], Tensor]):
        """Create the batches.

        Args:
            own_tokens: See above.
            draw_seed: Draws the seed of a mask from the random state of an adapter's batch.
        """
        self.own_tokens = tuple(own_tokens)
        self._draw_seed = draw_seed
        self._current: tuple[weakref.ref[Tensor], int, dict[str, Tensor]] | None = None
        self._drawn: dict[int, list[dict[str, Tensor]]] = {}

    def seeds(
        self, layer: DescribedLayer, updates: Mapping[str, LowRankUpdate], x: Tensor
    ) -> list[Tensor | None]:
        """Return the seed of each update's mask, drawn as in its own batch.

        There, layers that are called with one activation share a mask if they are siblings.

        Raises:
            AdapterStateError: Gradient checkpointing runs a layer again that was called twice.
        """
        seeds = self._seeds_for(layer, x)
        found: list[Tensor | None] = []
        for name, update in updates.items():
            if update.drops and name not in seeds:
                seeds[name] = self._draw_seed(name)
            found.append(seeds[name] if update.drops else None)
        return found

    def _seeds_for(self, layer: DescribedLayer, x: Tensor) -> dict[str, Tensor]:
        """Return the seeds that are drawn for an activation."""
        calls = self._drawn.setdefault(id(layer), [])
        if torch._C._current_graph_task_id() != -1:  # checkpointing runs the layer again
            if len(calls) != 1:
                raise AdapterStateError(
                    "Cannot repeat the dropout masks of several runs: gradient checkpointing runs "
                    f"again a layer that was called {len(calls)} times, expected once. Train these "
                    "runs one after another, or without activation_checkpointing."
                )
            return calls[0]
        readers = id(layer) if layer.siblings is None else id(layer.siblings)
        current = self._current
        if current is None or current[0]() is not x or current[1] != readers:
            self._current = current = (weakref.ref(x), readers, {})
        calls.append(current[2])
        return current[2]

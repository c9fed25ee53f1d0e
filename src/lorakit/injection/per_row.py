"""One adapter for each row of a batch, or for each segment of a packed sequence."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from lorakit.errors import AdapterNameError, AdapterStateError, ShapeError
from lorakit.injection.activation import adapter_names, set_trained
from lorakit.injection.state import (
    adapted_and_replaced_modules,
    require_adapter,
    require_state,
    require_unmerged,
    unwrap,
)
from lorakit.layers import AdaptedLayer
from lorakit.layers.executors.per_row import PerRowAdapters
from lorakit.layers.executors.separate_batches import SeparateBatches

_EXPAND = "_expand_inputs_for_generation"
"""Name of the method by which transformers models repeat rows for beams."""


@contextmanager
def adapter_rows(
    model: nn.Module,
    names: Sequence[str | None] = (),
    *,
    segments: Sequence[tuple[int, str | None]] | None = None,
    batches: SeparateBatches | None = None,
) -> Iterator[RowChoice]:
    """Run batches in which each row has its own adapter or none, inside a `with` block.

    Every layer computes all rows at once: one base product, and one grouped product for the
    low-rank parts. Ranks, scalings, dropout, trained heads and biases may differ between the
    adapters. It works in training too: adapters that were added as trainable require gradients
    from then on, until `set_adapter` is called, so one optimizer can train several in one batch.
    `generate` repeats the names as it repeats rows for beams or several answers.
    With gradient checkpointing, call `backward` inside the block. Factors may be moved, replaced
    or changed in place inside the block, but not by assigning to a parameter's `.data`.

    Args:
        model: A model with adapters.
        names: The adapter of each row of the batch, None for the base alone.
        segments: Instead of names: (tokens, adapter or None) of each segment of one packed sequence
            (1, tokens). The attention mask and the positions that separate them are the caller's.
        batches: Where the rows of each adapter are a separate batch, padded to the length of
            the others: gives each batch the dropout masks that it has alone.

    Yields: An object whose `choose` gives the rows of later batches other adapters.

    Raises:
        AdapterNameError: `names` is empty or a single string, or there is no such adapter.
        AdapterStateError: The model is merged, or inside another such block.
        ShapeError: A segment has no tokens; or raised by the model if a batch has another number
            of rows, or a packed sequence another number of tokens.

    Example:
        >>> import torch
        >>> from lorakit import LoraConfig, add_adapter, adapter_rows
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4))
        >>> for name in ("german", "french"):
        ...     _ = add_adapter(model, LoraConfig(r=2, target_modules=["0"]), name)
        >>> with adapter_rows(model, ["german", None, "french"]):
        ...     model(torch.randn(3, 4)).shape
        torch.Size([3, 4])
    """
    require_unmerged(model, "choose adapters by row")
    state = require_state(model)
    if segments is not None and names:
        raise AdapterNameError(
            f"Cannot choose adapters by row and by segment: got names={names!r} and segments, "
            "expected one of them. Leave names out for a packed sequence."
        )
    if segments is None and (isinstance(names, str) or not names):
        raise AdapterNameError(
            f"Cannot choose adapters by row: got {names!r}, expected a name or None for each row "
            "of the batch. Pass a list; for one adapter in all rows call set_adapter."
        )
    rows = PerRowAdapters(names, batches=batches) if segments is None else _pack_segments(segments)
    for name in rows.distinct:
        require_adapter(model, name)
    trained = [name for name in rows.distinct if state.trainable[name]]
    if torch.is_grad_enabled() and trained:
        layers, replaced = adapted_and_replaced_modules(unwrap(model))
        set_trained(layers, replaced, dict.fromkeys(trained, True))
        state.modules_with_trained_tokens = tuple(
            dict.fromkeys((*state.modules_with_trained_tokens, *trained))
        )
    with _acting(model, rows) as layers:
        yield RowChoice(model, rows, layers)


@contextmanager
def _acting(model: nn.Module, rows: PerRowAdapters) -> Iterator[list[AdaptedLayer]]:
    """Let the layers of a model run rows with their adapters inside the block; yield them."""
    state = require_state(model)
    layers, replaced = adapted_and_replaced_modules(unwrap(model))
    holders: list[nn.Module] = [*layers, *replaced]
    for module in holders:
        module.per_row_adapters = rows  # type: ignore[assignment]  # None: no adapters of rows
    for layer in layers:
        layer.choose_executor()
    state.rows = rows
    rows.is_over = False
    try:
        with _tracking_repeats(unwrap(model), rows):
            yield layers
    finally:
        state.rows = None
        rows.is_over = True
        for module in holders:
            # Layers that backward may rerun keep it, to detect that.
            if not rows.had_gradients and vars(module).get("per_row_adapters") is rows:
                del module.per_row_adapters
        for layer in layers:
            layer.choose_executor()


class RowChoice:
    """Changes the adapters of the rows inside an `adapter_rows` block, without gradients.

    It takes far less time than another block: what layers have prepared of an adapter is kept.
    """

    def __init__(self, model: nn.Module, rows: PerRowAdapters, layers: list[AdaptedLayer]):
        self._model, self._rows, self._layers = model, rows, layers

    def again(self) -> AbstractContextManager[object]:
        """Return a block like the one before, for a backward that runs layers again."""
        return _acting(self._model, self._rows)

    def choose(self, names: Sequence[str | None]) -> None:
        """Give the rows of the next batches these adapters, whatever their number.

        Raises:
            AdapterNameError: There is no such adapter.
            AdapterStateError: The block is over, or layers have run with gradients in it.
        """
        rows = self._rows
        if rows.is_over or rows.had_gradients or rows.lengths is not None:
            raise AdapterStateError(
                "The adapters of rows cannot be changed: got a block that is over, one with "
                "segments or one in which layers have run with gradients, expected an "
                "adapter_rows block under torch.no_grad(). Enter another block."
            )
        for name in {*names}.difference((None,), adapter_names(self._model)):
            require_adapter(self._model, name)  # type: ignore[arg-type]  # None has been taken out
        rows.choose(names)

    def prepare(self, tokens: int) -> None:
        """Prepare all layers for the next batch, of so many tokens in all rows, without gradients.

        They would do it one by one.
        """
        self._rows.prepare(self._layers, tokens)


def _pack_segments(segments: Sequence[tuple[int, str | None]]) -> PerRowAdapters:
    lengths = [length for length, _ in segments]
    if not lengths or min(lengths) < 1:
        raise ShapeError(
            f"Cannot choose adapters by segment: got {list(segments)!r}, expected (tokens, adapter "
            "or None) of each segment, with at least one token. Leave empty segments out."
        )
    return PerRowAdapters([name for _, name in segments], lengths)


@contextmanager
def _tracking_repeats(model: nn.Module, rows: PerRowAdapters) -> Iterator[None]:
    """Track how often transformers' `generate` repeats each row.

    An encoder has run before, with the rows not repeated.
    """
    if not hasattr(model, _EXPAND) or _EXPAND in vars(model):
        yield
        return
    setattr(model, _EXPAND, _Expanding(model, rows))
    try:
        yield
    finally:
        delattr(model, _EXPAND)


class _Expanding:
    """Replaces the method of a model that repeats rows; copies of the model get a copy."""

    def __init__(self, model: nn.Module, rows: PerRowAdapters):
        self.model, self.rows = model, rows

    def __call__(self, expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
        self.rows.repeats = expand_size
        # mostly a static method in transformers
        method = inspect.getattr_static(type(self.model), _EXPAND).__get__(self.model)
        return method(expand_size, *args, **kwargs)

"""Batches in which each row has its own adapter, or none: the forward of layers for them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from lorakit.errors import AdapterStateError, ShapeError
from lorakit.layers.described import DescribedLayer
from lorakit.layers.magnitude import norms_of
from lorakit.layers.updates.low_rank_update import LowRankUpdate, shared_seed
from lorakit.ops import LowRankTerm, low_rank_linear
from lorakit.ops.grouped import PerRowTerms, low_rank_linear_per_row


class PerRowAdapters:
    """Which adapter each row of a batch has; one object shared by all layers of a model.

    Attributes:
        names: The adapter of each row, None for the base alone.
        distinct: The distinct adapters.
        index: Position of each row's adapter in `distinct`, or -1.
        is_over: Whether its `with` block has been left.
        had_gradients: Whether a layer has run with gradients, so that backward may run it again.
        repeats: How often the model currently repeats each row, as beam search does; a batch may
            have either number of rows, as an encoder's input is not repeated.
    """

    def __init__(self, names: Sequence[str | None]):
        self.names = tuple(names)
        self.distinct = tuple(dict.fromkeys(name for name in names if name is not None))
        position: dict[str | None, int] = {name: i for i, name in enumerate(self.distinct)}
        self.index = tuple(position.get(name, -1) for name in names)
        self.is_over = False
        self.had_gradients = False
        self.repeats = 1
        self._repeated: PerRowAdapters | None = None
        self._prepared: dict[int, _Prepared] = {}
        self._seed: tuple[weakref.ref[Tensor], Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles of a model hold no references to the original.
        return {"names": self.names, "is_over": self.is_over}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["names"])
        self.is_over = state["is_over"]

    def act_on(self, layer: nn.Module) -> bool:
        """Return whether batch rows have their own adapters in this call of a layer.

        Raises:
            AdapterStateError: The `with` block is over and a checkpointed layer is run again.
        """
        if not self.is_over:
            return True
        # Layers forget only when they are called again: until then backward may rerun them.
        if torch._C._current_graph_task_id() != -1:
            raise AdapterStateError(
                "Gradient checkpointing runs a layer again after the adapter_rows block it belongs "
                "to, expected backward inside the block. Call loss.backward() before leaving it."
            )
        del layer.per_row_adapters
        return False

    def _for_rows(self, rows: int) -> PerRowAdapters:
        """Return the adapters of a batch of this many rows: each name repeated, or once."""
        if rows == len(self.names) or rows != len(self.names) * self.repeats:
            return self
        if self._repeated is None or len(self._repeated.names) != rows:
            names = [name for name in self.names for _ in range(self.repeats)]
            self._repeated = PerRowAdapters(names)
        return self._repeated

    # ---- layers ----

    def linear(self, layer: DescribedLayer, x: Tensor) -> Tensor:
        """Run a linear layer, each row with its own adapter."""
        self.had_gradients = self.had_gradients or torch.is_grad_enabled()
        if (rows := self._for_rows(len(x))) is not self:
            return rows.linear(layer, x)
        prepared = self._prepared.get(id(layer))
        is_current = prepared is not None and prepared.exchanges == LowRankUpdate.exchanges
        if prepared is None or torch.is_grad_enabled() or not is_current:
            prepared = self._prepare(layer, x)
        W0 = layer.base_weight()
        if prepared.rows is None:
            if isinstance(W0, Tensor):
                return F.linear(x, W0, layer.bias)  # type: ignore[arg-type]
            return low_rank_linear(x, W0, layer.bias, ())  # type: ignore[arg-type]
        if prepared.magnitudes is not None:
            h = low_rank_linear_per_row(x, W0, None, prepared.rows)
            # In float32 at least: c rounded to 16 bits would lose small changes by training.
            h = h + h * _per_row(prepared.magnitudes, h).sub(1).to(h.dtype)
            bias = layer.bias if prepared.biases is None else _per_row(prepared.biases, h)
            return h if bias is None else h + bias.to(h.dtype)  # type: ignore[union-attr]
        if prepared.biases is None:
            return low_rank_linear_per_row(x, W0, layer.bias, prepared.rows)  # type: ignore[arg-type]
        h = low_rank_linear_per_row(x, W0, None, prepared.rows)
        return h + _per_row(prepared.biases, h).to(h.dtype)

    def added_per_row(
        self,
        layer: DescribedLayer,
        change: Callable[[LowRankUpdate, Tensor, Tensor], Tensor],
        x: Tensor,
        h: Tensor,
    ) -> Tensor:
        """Add a layer's updates to the base's output, one adapter after the other.

        Args:
            layer: An embedding or a convolution.
            change: Function of an update and some rows of x and h; returns what to add to these.
            x: Its input, rows first.
            h: Its base's output.
        """
        if x.ndim and (batch := self._for_rows(len(x))) is not self:
            return batch.added_per_row(layer, change, x, h)
        self._check_rows(x, layer.plain_class.__name__)
        for number, name in enumerate(self.distinct):
            if name not in layer.updates:
                continue
            rows = self._rows_of(number, x.device)
            share = change(layer.updates[name], x[rows], h[rows])  # type: ignore[arg-type]
            h = h.index_add(0, rows, share.to(h.dtype))
        return h

    def replaced(
        self,
        module: nn.Module,
        run: Callable[..., Any],
        run_copy: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a module that adapters have copies of, each copy on the rows of its adapter.

        Args:
            module: The module.
            run: The base's forward.
            run_copy: Function of a copy, the output of the base's forward, and forward's arguments.
            args: Arguments of forward; the first dimension of tensors is the batch rows.
            kwargs: Likewise.
        """
        copies: Any = module.trained_copies
        having = [number for number, name in enumerate(self.distinct) if name in copies]
        first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if first is not None and first.ndim and (batch := self._for_rows(len(first))) is not self:
            return batch.replaced(module, run, run_copy, args, kwargs)
        if first is not None and having:
            self._check_rows(first, type(module).__name__)
        # The base runs on all rows, as layers inside it may have adapters for some.
        result = run(*args, **kwargs)
        for number in having:
            own = [row for row, position in enumerate(self.index) if position == number]

            def pick(value: Any, own: list[int] = own) -> Any:
                is_batch = (
                    isinstance(value, Tensor) and value.ndim and len(value) == len(self.index)
                )
                return value[own] if is_batch else value

            given = (tree_map(pick, result), tree_map(pick, args), tree_map(pick, kwargs))
            part = run_copy(copies[self.distinct[number]], *given)
            result = _with_rows(result, part, own, len(self.index))
        return result

    # ---- what they need ----

    def _prepare(self, layer: DescribedLayer, x: Tensor) -> _Prepared:
        updates: list[LowRankUpdate] = []
        index: dict[int, int] = {}
        for number, name in enumerate(self.distinct):
            if name in layer.updates:
                index[number] = len(updates)
                updates.append(layer.updates[name])  # type: ignore[arg-type]
        if not updates:
            return _Prepared(None, None)
        seed = self._shared_seed(updates, x)
        called = [update(seed) for update in updates]
        positions = [index.get(number, -1) for number in self.index]
        rows = PerRowTerms([term for term, *_ in called], positions)
        biases = magnitudes = None
        if any(bias is not None for _, bias, _ in called):
            biases = _row_biases([bias for _, bias, _ in called], layer.bias, positions)  # type: ignore[arg-type]
        if any(magnitude is not None for *_, magnitude in called):
            magnitudes = _row_scales(layer, updates, called, positions)
        if torch.is_grad_enabled() or not _may_be_kept(updates) or biases is not None:
            return _Prepared(rows, biases, magnitudes)
        prepared = self._prepared[id(layer)] = _Prepared(rows, None, None, LowRankUpdate.exchanges)
        return prepared

    def _shared_seed(self, updates: Sequence[LowRankUpdate], x: Tensor) -> Tensor | None:
        """Return one seed for all layers that read the same activation."""
        if torch.compiler.is_compiling():
            return shared_seed(updates)
        if self._seed is not None and self._seed[0]() is x:
            return self._seed[1] if any(update.drops for update in updates) else None
        seed = shared_seed(updates)
        self._seed = None if seed is None else (weakref.ref(x), seed)
        return seed

    def _rows_of(self, number: int, device: torch.device) -> Tensor:
        rows = [row for row, position in enumerate(self.index) if position == number]
        return torch.tensor(rows, device=device)

    def _check_rows(self, x: Tensor, what: str) -> None:
        if x.ndim == 0 or x.shape[0] != len(self.index):
            raise ShapeError(
                f"Adapters are given for {len(self.index)} rows, but the input of {what} has shape "
                f"{tuple(x.shape)}, expected {len(self.index)} as its first dimension. Name one "
                "adapter for each row of the batch; generate() repeats the names as it repeats "
                "rows for beams."
            )


class _Prepared(NamedTuple):
    """What a layer needs for a batch: its terms, and the bias of each row where they differ."""

    rows: PerRowTerms | None
    biases: Tensor | None
    magnitudes: Tensor | None = None
    """c of each row, (rows, out), 1 where its adapter has no magnitude."""
    exchanges: int = -1
    """`LowRankUpdate.exchanges` when it was made; None where it cannot be reused."""


def _may_be_kept(updates: Sequence[LowRankUpdate]) -> bool:
    """Whether prepared operands see later changes of the factors: no copies, no hooks."""
    return not torch.compiler.is_compiling() and all(
        not update.has_magnitude
        and update.keeps_saved_factors
        and update.lora_A.dtype == update.lora_B.dtype == torch.float32
        and update.lora_A.device.type == "cpu"
        and update.lora_A.is_contiguous()
        and update.lora_B.is_contiguous()
        and not update.drops
        and not update._forward_pre_hooks
        and "_hf_hook" not in vars(update)
        for update in updates
    )


def _row_biases(
    biases: Sequence[Tensor | None], own: Tensor | None, positions: Sequence[int]
) -> Tensor:
    """Return each row's bias, (rows, out): its adapter's, or the base's."""
    given = next(bias for bias in biases if bias is not None)
    rest = given.new_zeros(given.shape) if own is None else own.to(given.dtype)
    stacked = torch.stack([rest if bias is None else bias for bias in (*biases, None)])
    return stacked[torch.tensor(positions, device=given.device)]  # -1 is the last, the base's


def _row_scales(
    layer: DescribedLayer,
    updates: Sequence[LowRankUpdate],
    called: Sequence[tuple[LowRankTerm, Tensor | None, Tensor | None]],
    positions: Sequence[int],
) -> Tensor:
    """Return m / ‖W0 + s B A‖ of each row's adapter, (rows, out); 1 where it has no magnitude."""
    scales: list[Tensor | None] = []
    for update, (term, _, magnitude) in zip(updates, called, strict=True):
        norms = None if magnitude is None else norms_of(layer, update, term)
        scales.append(None if magnitude is None else magnitude.to(norms.dtype) / norms)  # type: ignore[union-attr]
    ones = torch.ones_like(next(scale for scale in scales if scale is not None))
    stacked = torch.stack([ones if scale is None else scale for scale in (*scales, None)])
    return stacked[torch.tensor(positions, device=stacked.device)]  # -1 is the last, the ones


def _per_row(values: Tensor, h: Tensor) -> Tensor:
    """Return values of each row, (rows, out), in a shape to combine with h, (rows, *, out)."""
    return values.view(len(h), *[1] * (h.ndim - 2), -1)


def _with_rows(result: Any, part: Any, own: list[int], rows: int) -> Any:
    """Return a result with some rows replaced by those of another, of the same structure."""
    if isinstance(result, Tensor):
        if not result.ndim or len(result) != rows:
            raise ShapeError(
                f"Adapters are given for {rows} rows, but a trained module returns a tensor of "
                f"shape {tuple(result.shape)}, expected {rows} as its first dimension. Run the "
                "rows of each adapter in a separate batch."
            )
        where = torch.tensor(own, device=result.device)
        return result.index_copy(0, where, part.to(result.dtype))
    if isinstance(result, tuple | list):
        pairs = zip(result, part, strict=True)
        return type(result)(_with_rows(one, other, own, rows) for one, other in pairs)
    return result

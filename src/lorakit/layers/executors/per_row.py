"""Batches in which each row has an adapter or none, and packed sequences of such segments."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lorakit.errors import AdapterStateError
from lorakit.layers.described import DescribedLayer
from lorakit.layers.executors.known_terms import KnownTerm, KnownTerms
from lorakit.layers.executors.prepared import PreparedRows, prepared_rows, stay_in_place
from lorakit.layers.executors.row_places import Place, RowPlaces
from lorakit.layers.executors.separate_batches import SeparateBatches
from lorakit.layers.updates.low_rank_update import LowRankUpdate, shared_seed
from lorakit.ops.grouped import low_rank_linear_per_row
from lorakit.ops.operands import LowRankTerm
from lorakit.ops.per_row_terms import PerRowTerms


class PerRowAdapters:
    """Which adapter each row of a batch has; one object shared by all layers of a model.

    The rows may also be segments of one packed sequence, (1, tokens, …), each of its length.

    Attributes:
        names: The adapter of each row, None for the base alone.
        lengths: Tokens of each segment; None for rows of a batch.
        batches: The batches that the rows come from, each with its own dropout masks; None if
            they are one batch.
        distinct: The distinct adapters.
        index: Position of each row's adapter in `distinct`, or -1.
        places: Where they lie in a tensor.
        is_over: Whether its `with` block has been left.
        had_gradients: Whether a layer has run with gradients, so that backward may run it again.
        repeats: How often the model currently repeats each row, as beam search does; a batch may
            have either number of rows, as an encoder's input is not repeated.
    """

    def __init__(
        self,
        names: Sequence[str | None],
        lengths: Sequence[int] | None = None,
        batches: SeparateBatches | None = None,
    ):
        self.lengths = None if lengths is None else tuple(lengths)
        self.batches = batches
        self.is_over = False
        self.had_gradients = False
        self.repeats = 1
        self._block = object()
        self.choose(names)
        self._seed: tuple[weakref.ref[Tensor], Tensor] | None = None

    def choose(self, names: Sequence[str | None]) -> None:
        """Give the rows, of any number, these adapters from now on."""
        self.names = tuple(names)
        self.distinct = tuple(dict.fromkeys(name for name in names if name is not None))
        position: dict[str | None, int] = {name: i for i, name in enumerate(self.distinct)}
        self.index = tuple(position.get(name, -1) for name in names)
        self.places = RowPlaces(self.index, self.lengths)
        self._repeated: PerRowAdapters | None = None
        self._choice = object()

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles of a model hold no references to the original.
        return {"names": self.names, "lengths": self.lengths, "is_over": self.is_over}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["names"], state["lengths"])
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
        if isinstance(layer, DescribedLayer):
            layer.choose_executor()
        return False

    def _for_rows(self, rows: int) -> PerRowAdapters:
        """Return the adapters of a batch of this many rows: each name repeated, or once."""
        is_repeated = rows != len(self.names) and rows == len(self.names) * self.repeats
        if self.lengths is not None or not is_repeated:
            return self
        if self._repeated is None or len(self._repeated.names) != rows:
            names = [name for name in self.names for _ in range(self.repeats)]
            self._repeated = PerRowAdapters(names)
        return self._repeated

    # ---- layers ----

    def __call__(self, layer: DescribedLayer, x: Tensor) -> Tensor:
        """Run a layer, each row with its adapter."""
        known = layer.known_terms
        kept: _Prepared | None = None if known is None else known.prepared
        if (
            kept is not None
            and kept.call is not None
            and not self.is_over
            and self.repeats == 1
            and kept.choice is self._choice
            and kept.exchanges == LowRankUpdate.exchanges
            and not (torch.is_grad_enabled() or torch.compiler.is_compiling())
        ):
            output = kept.call.output(layer, x)
            if output is not None:
                return output
        return self._run(layer, x)

    def _run(self, layer: DescribedLayer, x: Tensor) -> Tensor:
        if not self.act_on(layer):
            return layer.executor(layer, x)
        self.had_gradients = self.had_gradients or torch.is_grad_enabled()
        if x.ndim and (batch := self._for_rows(len(x))) is not self:
            return batch(layer, x)
        if not layer.is_matrix_product:
            return self._update_row_by_row(layer, x)
        prepared = self._find_prepared(layer) or self._prepare(layer, x)
        if prepared.rows is None:
            return layer.base_output(x)
        if not (prepared.call is None or torch.is_grad_enabled() or torch.compiler.is_compiling()):
            output = prepared.call.output(layer, x)
            if output is not None:
                return output
        return low_rank_linear_per_row(x, layer.base_weight(), layer.bias, prepared.rows)  # type: ignore[arg-type]  # a plain weight here

    def _update_row_by_row(self, layer: DescribedLayer, x: Tensor) -> Tensor:
        """Run an embedding or a convolution: the base once, then one adapter after the other."""
        h = layer.base_output(x)
        having = [number for number, name in enumerate(self.distinct) if name in layer.updates]
        if having:
            self.places.check(x, layer.plain_class.__name__)
        for number in having:
            place = self.places.of(number, x.device)
            name = self.distinct[number]
            update: LowRankUpdate = layer.updates[name]  # type: ignore[assignment]  # an item of a ModuleDict
            seed = None if self.batches is None else self.batches.seeds(layer, {name: update}, x)[0]
            operands = layer.operands([update], seed)
            updated = layer.update_output(x[place], h[place], operands)
            h = h.index_put(place, updated.to(h.dtype))
        return h

    def run_replaced(
        self,
        module: nn.Module,
        run: Callable[..., Any],
        run_copy: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a module that adapters have copies of, each copy on the rows of its adapter.

        `run` is the base's forward, with the batch rows in the first dimension of its arguments;
        `run_copy` takes a copy, what `run` returned, and these arguments.
        """
        copies: Any = module.trained_copies
        having = [number for number, name in enumerate(self.distinct) if name in copies]
        first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        if first is not None and first.ndim and (batch := self._for_rows(len(first))) is not self:
            return batch.run_replaced(module, run, run_copy, args, kwargs)
        if first is not None and having:
            self.places.check(first, type(module).__name__)
        # The base runs on all rows, as layers inside it may have adapters for some.
        result = run(*args, **kwargs)
        for number in having:
            for place in self.places.of_copy(number):

                def pick(value: Any, place: Place = place) -> Any:
                    return value[place] if self.places.are_in(value) else value

                given = (tree_map(pick, result), tree_map(pick, args), tree_map(pick, kwargs))
                share = run_copy(copies[self.distinct[number]], *given)
                result = self.places.replace(result, share, place)
        return result

    # ---- what they need ----

    def prepare(self, layers: Iterable[DescribedLayer], tokens: int) -> None:
        """Prepare layers for a batch of some tokens without gradients, before the first is called.

        Between two layers their weights fill the caches, so that the same Python takes longer.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return
        for layer in layers:
            having: Any = layer.updates._modules
            drops = any(having[name].drops for name in self.distinct if name in having)
            if drops or not layer.is_matrix_product:
                continue
            prepared = self._find_prepared(layer) or self._prepare(layer, None)
            if prepared.rows is not None and prepared.call is not None:
                prepared.rows.kernel_groups(tokens)

    def _prepare(self, layer: DescribedLayer, x: Tensor | None) -> _Prepared:
        """Prepare a layer for these rows; x may be None if no update drops elements of it."""
        names, index = self._acting(layer)
        if not names:
            return _Prepared(None)
        having: Any = layer.updates._modules
        updates: dict[str, LowRankUpdate] = {name: having[name] for name in names}
        own_tokens = self._own_tokens
        has_masks = own_tokens is not None and any(each.drops for each in updates.values())
        if (
            torch.compiler.is_compiling()
            or has_masks
            or (torch.is_grad_enabled() and not stay_in_place([*updates.values()]))
        ):
            biases: list[Tensor | None] = []
            terms: list[LowRankTerm] = []
            seeds = self._seeds(layer, updates, x)
            for update, seed in zip(updates.values(), seeds, strict=True):
                _, bias, (term,) = layer.operands([update], seed)
                biases.append(None if bias is layer.bias else bias)
                terms.append(term)
            rows = PerRowTerms(terms, index, biases, self.lengths, own_tokens=own_tokens)
            return _Prepared(rows)
        if layer.known_terms is None:
            layer.known_terms = KnownTerms()
        known: list[KnownTerm] = layer.known_terms.of(
            layer, names, lambda update: self._shared_seed([update], x), self._block
        )
        rows = PerRowTerms(
            [each.term for each in known],
            index,
            [each.bias for each in known],
            self.lengths,
            (layer.known_terms.table, [each.slot for each in known]),
            own_tokens,
        )
        if any(each.changed < 0 for each in known):
            return _Prepared(rows)
        call = prepared_rows(layer, rows) if all(each.stays for each in known) else None
        prepared = _Prepared(rows, LowRankUpdate.exchanges, self._choice, tuple(known), call)
        layer.known_terms.prepared_before = layer.known_terms.prepared
        layer.known_terms.prepared = prepared
        return prepared

    @property
    def _own_tokens(self) -> tuple[int, ...] | None:
        return None if self.batches is None else self.batches.own_tokens

    def _acting(self, layer: DescribedLayer) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return the adapters of rows that a layer has, and the position of each row's in them."""
        having: Any = layer.updates._modules  # the methods of a ModuleDict are slow
        names = tuple(name for name in self.distinct if name in having)
        if len(names) == len(self.distinct):
            return names, self.index
        place = {self.distinct.index(name): n for n, name in enumerate(names)}
        return names, tuple(place.get(number, -1) for number in self.index)

    def _find_prepared(self, layer: DescribedLayer) -> _Prepared | None:
        """Return what a layer has prepared for these rows, if it is still valid."""
        known = layer.known_terms
        if known is None or torch.compiler.is_compiling():
            return None
        kept: _Prepared | None = known.prepared
        if kept is None:
            return None
        if kept.exchanges != LowRankUpdate.exchanges or kept.choice is not self._choice:
            if not self._describes(kept, layer):
                before: _Prepared | None = known.prepared_before
                if before is None or not self._describes(before, layer):
                    return None
                known.prepared_before, kept = kept, before
            kept = kept._replace(exchanges=LowRankUpdate.exchanges, choice=self._choice)
            known.prepared = kept
        reads_values = not torch.is_grad_enabled()  # with gradients, values have a graph
        if all(
            each.stays or (reads_values and each.has_values_of(each.update, self._block))
            for each in kept.known
        ):
            return kept
        return None

    def _describes(self, kept: _Prepared, layer: DescribedLayer) -> bool:
        """Return whether what a layer has prepared is of these rows and of its updates of now."""
        if kept.rows is None or len(kept.rows.index) != len(self.index):
            return False
        having: Any = layer.updates._modules
        names, index = self._acting(layer)
        return (
            (index, self.lengths) == (kept.rows.index, kept.rows.lengths)
            and self._own_tokens == kept.rows.own_tokens
            and len(names) == len(kept.known)
            and all(
                each.describes(having[name]) for name, each in zip(names, kept.known, strict=True)
            )
        )

    def _seeds(
        self, layer: DescribedLayer, updates: Mapping[str, LowRankUpdate], x: Any
    ) -> list[Tensor | None]:
        """Return the seed of each update's mask: one for all, or those of their batches."""
        if self.batches is not None:
            return self.batches.seeds(layer, updates, x)
        seed = self._shared_seed([*updates.values()], x)
        return [seed] * len(updates)

    def _shared_seed(self, updates: Sequence[LowRankUpdate], x: Any) -> Tensor | None:
        """Return one seed for all layers that read the same activation."""
        if torch.compiler.is_compiling():
            return shared_seed(updates)
        if self._seed is not None and self._seed[0]() is x:
            return self._seed[1] if any(update.drops for update in updates) else None
        seed = shared_seed(updates)
        self._seed = None if seed is None else (weakref.ref(x), seed)
        return seed


class _Prepared(NamedTuple):
    """What a layer needs for a batch."""

    rows: PerRowTerms | None
    """The terms; None if no row has an update of the layer."""
    exchanges: int = -1
    """`LowRankUpdate.exchanges` when it was last compared; -1 where it cannot be reused."""
    choice: object = None
    """Identity of the choice of names that it is known to fit."""
    known: tuple[KnownTerm, ...] = ()
    """What the terms were made of."""
    call: PreparedRows | None = None
    """What computes it with the least Python; None where values or gradients are needed."""

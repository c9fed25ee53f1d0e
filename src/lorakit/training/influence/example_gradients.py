"""Gradients of the loss of single examples with respect to lora_A and lora_B."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from lorakit.injection.state import updates_named
from lorakit.libraries.machine_memory import free_memory
from lorakit.training.step import Evaluated

_PASSES = 3
"""Passes of `data_influence` over the examples."""

_ROOM_SHARE = 0.25
"""Share of the free memory for gradients that are kept; those of more examples are computed in
every pass."""


class ExampleLosses:
    """Losses of single examples under a trained adapter, without dropout, and their gradients."""

    def __init__(self, trainer: Any) -> None:
        """Take the step, collator, model and trained adapter of the trainer of a run's task."""
        self._trainer = trainer
        self._model = trainer.model.eval()
        self._factors = {
            f"{path}.{kind}": getattr(update, kind)
            for path, _, update in updates_named(self._model, "default")
            for kind in ("lora_A", "lora_B")
            if getattr(update, kind).requires_grad
        }

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients of one example."""
        return sum(t.numel() * t.element_size() for t in self._factors.values())

    def gradients(self, example: dict[str, Any]) -> dict[str, Tensor]:
        """Return the gradients of the mean loss of an example, by the name of the tensor."""
        with torch.enable_grad():  # also in a pass that computes with the gradients alone
            loss = self._trainer.step.share(self._model, self._batch(example)).loss
        found = torch.autograd.grad(loss, list(self._factors.values()), materialize_grads=True)
        return {name: g.detach() for name, g in zip(self._factors, found, strict=True)}

    def evaluate(self, example: dict[str, Any]) -> tuple[Evaluated, Tensor]:
        """Return the loss and outputs of an example, and its labels."""
        batch = self._batch(example)
        labels = batch["labels"]
        return self._trainer.step.evaluate(self._model, batch), labels

    def _batch(self, example: dict[str, Any]) -> Any:
        return self._trainer._prepare_inputs(self._trainer.data_collator([example]))

    def usable(self, examples: Dataset) -> Dataset:
        """Return examples with the columns that the collator takes."""
        return self._trainer._remove_unused_columns(examples, "training")


class ExampleGradients:
    """The gradients of each example of a data set; they can be iterated several times."""

    def __init__(
        self,
        losses: ExampleLosses,
        examples: Dataset,
        on_share: Callable[[float], None] | None = None,
    ) -> None:
        """Keep the examples; gradients are computed when they are iterated.

        Args:
            losses: Computes the gradients.
            examples: The encoded examples.
            on_share: Called after each gradient with the share of those of `data_influence` that
                are computed, from 0 to 1.
        """
        self._losses = losses
        self._examples: Any = losses.usable(examples)
        room_bytes = _ROOM_SHARE * free_memory()
        self._keeps = losses.gradient_bytes * len(examples) <= room_bytes
        self._kept: list[dict[str, Tensor]] = []
        self._on_share, self._done = on_share, 0
        self._all = len(self._examples) * (1 if self._keeps else _PASSES)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if len(self._kept) == len(self._examples):
            yield from self._kept
            return
        self._kept = []
        for example in self._examples:
            found = self._losses.gradients(example)
            if self._keeps:
                self._kept.append(found)
            self._done += 1
            if self._on_share is not None:
                self._on_share(min(1.0, self._done / self._all))
            yield found


def mean_gradients(losses: ExampleLosses, examples: Dataset) -> dict[str, Tensor]:
    """Return the mean of the gradients of examples, of which there is at least one."""
    total: dict[str, Tensor] = {}
    usable: Any = losses.usable(examples)
    for example in usable:
        found = losses.gradients(example)
        total = {name: g + total[name] for name, g in found.items()} if total else found
    return {name: g / len(examples) for name, g in total.items()}

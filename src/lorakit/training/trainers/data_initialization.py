"""Initialize an adapter from training data, and restore its ranks when a run is resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lorakit.adapters import initialize_from_data
from lorakit.adapters.peft_files.format import config_from_peft, parse_keys
from lorakit.config import TaskType
from lorakit.data.answers import AnswerCollator
from lorakit.distributed.processes import process_count, run_on_main
from lorakit.initialization import initialization_of
from lorakit.injection import Injection, adapter_config
from lorakit.injection.change_ranks import change_ranks
from lorakit.injection.state import updates_named
from lorakit.layers import OffsetUpdate

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import Trainer


def initialize_adapter_from_data(trainer: Trainer, model: nn.Module, name: str) -> None:
    """Initialize a new adapter from batches of training examples, if its config asks for it.

    All processes use the same examples. Call this before the optimizer is created.

    Args:
        trainer: The trainer of the model.
        model: The model, not wrapped.
        name: Name of the adapter.
    """
    config = adapter_config(model, name)
    initialization = initialization_of(config.init_lora_weights)
    if initialization.needs_data:
        collate: Any = trainer.data_collator
        if initialization.source == "inputs" and isinstance(collate, AnswerCollator):
            # The model reads these batches, not the step, which knows where two answers are.
            scores = config.task_type is TaskType.SEQ_CLS
            collate = _row_for_each_answer(collate, has_labels=not scores)
        batches = _batches(trainer, config.init_batches, collate)
        initialize_from_data(model, batches, name, loss=_mean_loss(trainer))
    if process_count() > 1:
        _share_initialization(model, name)


def _batches(trainer: Trainer, count: int, collate: Callable[..., Any]) -> list[Any]:
    """Return batches of random examples, chosen with the run's seed and its own generator."""
    any_trainer: Any = trainer
    size, seed = any_trainer.args.per_device_train_batch_size, any_trainer.args.seed
    examples = any_trainer._remove_unused_columns(any_trainer.train_dataset, "training")
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    chosen = order[: count * size].tolist()
    return [
        collate([examples[number] for number in chosen[first : first + size]])
        for first in range(0, len(chosen), size)
    ]


def _row_for_each_answer(collate: AnswerCollator, *, has_labels: bool) -> Callable[..., Any]:
    """Return what collates examples of two answers into a batch row for each answer."""
    collate = replace(collate, shares_prompts=False)
    keys = ("input_ids", "attention_mask", *(["labels"] if has_labels else []))

    def collate_rows(examples: Sequence[Any]) -> dict[str, Tensor]:
        batch = collate(examples)
        return {key: batch[key].flatten(0, -2) for key in keys}

    return collate_rows


def _mean_loss(trainer: Trainer) -> Callable[[nn.Module, Any], Tensor]:
    """Return the mean loss of a batch, whose gradients are exact."""
    any_trainer: Any = trainer
    step = any_trainer.step
    return lambda model, batch: step.mean_loss(model, any_trainer._prepare_inputs(batch))


def _share_initialization(model: nn.Module, name: str) -> None:
    """Broadcast the initialization: the signs of singular vectors may differ between machines."""
    updates = {
        path: update
        for path, _, update in updates_named(model, name)
        if isinstance(update, OffsetUpdate)
    }
    shared = run_on_main(
        lambda: {
            path: tuple(factor.cpu() for factor in update.saved_factors())
            for path, update in updates.items()
        }
    )
    for path, factors in shared.items():
        updates[path].load_factors_(*factors)


def adopt_ranks(
    model: nn.Module, values: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str
) -> None:
    """Set the ranks of an EVA adapter, which are redistributed, to those of a checkpoint.

    Args:
        model: The model of the adapter.
        values: The checkpoint's adapter_config.json.
        tensors: The checkpoint's tensors.
        name: Name of the adapter.
    """
    config = adapter_config(model, name)
    if not initialization_of(config.init_lora_weights).redistributes_ranks:
        return
    saved = config_from_peft(values, "the checkpoint")
    keys = parse_keys(tensors, "the checkpoint", saved.modules_to_save)
    ranks = {path: A.shape[0] for path, (A, _) in keys.factors.items()}
    given = {path: ranks.get(path, 0) for path, _, _ in updates_named(model, name)}
    kept = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")
    config = config.model_copy(update={key: getattr(saved, key) for key in kept})
    change_ranks(model, name, config, given)


def with_current_ranks(injection: Injection, model: nn.Module) -> Injection:
    """Return an injection report with the adapter's current ranks."""
    found = {path: update for path, _, update in updates_named(model, injection.name)}
    matches = tuple(
        replace(match, r=found[match.path].r, scaling=found[match.path].scaling)
        for match in injection.matches
        if match.path in found
    )
    return replace(injection, config=adapter_config(model, injection.name), matches=matches)

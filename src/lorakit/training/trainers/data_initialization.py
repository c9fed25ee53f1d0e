"""Adapters that begin where training data says, and what a resumed run knows of that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lorakit.adapters import initialize_from_data
from lorakit.adapters.peft_files.format import config_from_peft, parse_keys
from lorakit.distributed.processes import main_decides, process_count
from lorakit.initialization import initialization_of
from lorakit.injection import Injection, adapter_config
from lorakit.injection.change_ranks import change_ranks
from lorakit.injection.state import adapted_layers
from lorakit.layers import OffsetUpdate

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import Trainer


def initialize_adapter_from_data(trainer: Trainer, model: nn.Module, name: str) -> None:
    """Let a fresh adapter begin where batches of a trainer's rows say, if it is to.

    All processes look at the same rows. Call it before the optimizer is made.

    Args:
        trainer: Made for the model.
        model: The model itself.
        name: Which adapter.
    """
    config = adapter_config(model, name)
    if initialization_of(config.init_lora_weights).needs_data:
        initialize_from_data(model, _batches(trainer, config.init_batches), name)
    if process_count() > 1:
        _share_initialization(model, name)


def _batches(trainer: Trainer, count: int) -> list[Any]:
    """Return batches of rows that are drawn with the run's seed; random states stay as they are."""
    subject: Any = trainer
    rows, size = subject.train_dataset, subject.args.per_device_train_batch_size
    rows = subject._remove_unused_columns(rows, "training")
    drawn = torch.randperm(len(rows), generator=torch.Generator().manual_seed(subject.args.seed))
    chosen = drawn[: count * size].tolist()
    return [
        subject.data_collator([rows[row] for row in chosen[first : first + size]])
        for first in range(0, len(chosen), size)
    ]


def _share_initialization(model: nn.Module, name: str) -> None:
    """Give all processes the main one's start: machines may turn singular vectors around."""
    own = {
        path: layer.updates[name]
        for path, layer in adapted_layers(model)
        if isinstance(layer.updates._modules.get(name), OffsetUpdate)
    }
    shared = main_decides(
        lambda: {
            path: tuple(factor.cpu() for factor in update.saved_factors())  # type: ignore[union-attr,operator]
            for path, update in own.items()
        }
    )
    for path, factors in shared.items():
        own[path].load_factors_(*factors)  # type: ignore[union-attr,operator]


def adopt_ranks(
    model: nn.Module, values: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str
) -> None:
    """Give an adapter the ranks that a checkpoint's has, where these were dealt out anew (EVA).

    Args:
        model: Whose adapter it is.
        values: The checkpoint's adapter_config.json.
        tensors: The checkpoint's tensors.
        name: Which adapter.
    """
    config = adapter_config(model, name)
    if not initialization_of(config.init_lora_weights).redistributes_ranks:
        return
    saved = config_from_peft(values, "the checkpoint")
    keys = parse_keys(tensors, "the checkpoint", saved.modules_to_save)
    ranks = {path: A.shape[0] for path, (A, _) in keys.factors.items()}
    given = {
        path: ranks.get(path, 0) for path, layer in adapted_layers(model) if name in layer.updates
    }
    kept = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")
    config = config.model_copy(update={key: getattr(saved, key) for key in kept})
    change_ranks(model, name, config, given)


def as_trained(injection: Injection, model: nn.Module) -> Injection:
    """Return what was injected with the ranks that the adapter has now."""
    found: dict[str, Any] = {
        path: layer.updates[injection.name]
        for path, layer in adapted_layers(model)
        if injection.name in layer.updates
    }
    matches = tuple(
        replace(match, r=found[match.path].r, scaling=found[match.path].scaling)
        for match in injection.matches
        if match.path in found
    )
    return replace(injection, config=adapter_config(model, injection.name), matches=matches)

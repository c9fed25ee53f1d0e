"""Share one copy of a base in memory between all runs of a machine, by mapping a file.

Loading a base makes a private copy as soon as its weights are converted or quantized. Here the
first run saves the loaded base, and every run maps that file, so its pages are in memory once. A
page that a run writes to, such as that of a freshly initialized head, becomes private to it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock

from lorakit.files.atomic import replacing_file
from lorakit.files.private_files import is_private
from lorakit.models.pretrained import (
    fresh_modules,
    initialize_fresh_weights,
    remember_fresh_modules,
)
from lorakit.training.tasks.base import Task, seed_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorakit.recipes.recipe import Recipe


def load_shared_base(
    directory: Path,
    recipe: Recipe,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    labels: tuple[str, ...] | None,
) -> PreTrainedModel:
    """Map a recipe's base from a file in a directory; the first run creates the file.

    The model has the same bits as the one that `task.load_base` returns, including a head
    initialized with the recipe's seed. A run loads a private copy instead if the file cannot be
    used: custom code of a hub model cannot be saved, and unpickling the file runs code, so it is
    only read if nobody else can write to it.

    Args:
        directory: Directory of the files; created if needed.
        recipe: The recipe.
        task: Its task.
        tokenizer: The base's tokenizer.
        labels: The task's labels, if it has any.

    Raises:
        MissingFileError, ConfigError, QuantizationError: See `Task.load_base`.
    """
    if recipe.trust_remote_code:
        return task.load_base(recipe, tokenizer, labels)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    facts = json.dumps(facts_of_base(recipe, task, labels), sort_keys=True)
    path = directory / f"base-{hashlib.sha256(facts.encode()).hexdigest()[:16]}.pt"
    if not is_private(path if path.exists() else directory):
        return task.load_base(recipe, tokenizer, labels)
    logging.getLogger("filelock").setLevel(logging.WARNING)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            loaded = task.load_base(recipe, tokenizer, labels)
            with replacing_file(path) as partial:
                torch.save({"model": loaded, "fresh": fresh_modules(loaded)}, partial)
            del loaded
    saved = torch.load(path, mmap=True, weights_only=False)
    model = saved["model"]
    remember_fresh_modules(model, saved["fresh"])
    initialize_fresh_weights(model, seed_of(recipe))
    return model


def facts_of_base(recipe: Recipe, task: Task, labels: tuple[str, ...] | None) -> dict[str, Any]:
    """Return everything that determines the base's weights, except the head's seed.

    Args:
        recipe: The recipe.
        task: Its task.
        labels: The task's labels, if it has any.
    """
    how: dict[str, Any] = {
        "model": recipe.model,
        "revision": recipe.revision,
        "dtype": recipe.dtype,
        "task": recipe.task,
        "labels": labels,
        "problem_type": task.problem_type,
        "use_cpu": recipe.training.get("use_cpu"),
        "new_tokens": recipe.data.new_tokens,
    }
    if recipe.quantization is not None:
        how["quantization"] = recipe.quantization.model_dump(mode="json")
        how["lora.modules_to_save"] = recipe.lora.modules_to_save
    return how

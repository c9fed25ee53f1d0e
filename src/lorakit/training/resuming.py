"""Check that a run can be resumed: with the same recipe, or with more steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lorakit.distributed.processes import process_count
from lorakit.errors import CheckpointError, ConfigError, OutputExistsError, first_few
from lorakit.models.base_digest import are_different, base_digest
from lorakit.recipes.recipe import Recipe, changed_keys
from lorakit.recipes.run_directory import RunDirectory
from lorakit.training.callbacks import EventHandler, event_of
from lorakit.training.starting_point import run_lineage

_MAY_CHANGE_ON_RESUME = {
    "output",  # another spelling of the same directory
    "training.num_train_epochs",
    "training.max_steps",
    "training.save_total_limit",
}

_IGNORED_SECTIONS = ("evaluation", "search", "study")
"""Sections of a recipe that do not change what is trained."""


def with_recorded_dtype(recipe: Recipe, emit: EventHandler) -> Recipe:
    """Return the recipe of a run to resume; `dtype: auto` is what the run has chosen.

    Args:
        recipe: The recipe, whose `output` is the run.
        emit: Receives the event "dtype".
    """
    if recipe.dtype != "auto":
        return recipe
    run = RunDirectory.open(recipe.output)
    recipe = recipe.with_precision_of(_recipe_before(run))
    products = " with products in bfloat16" if recipe.training.get("bf16") else ""
    note = f"dtype: {recipe.dtype}{products}, as recorded in {run.recipe_file}; not measured again"
    emit("dtype", {"note": note})
    return recipe


def require_resumable(recipe: Recipe) -> None:
    """Refuse to resume a run that would continue differently.

    Raises:
        CheckpointError: The recipe, the base's weights or the number of processes differ; names
            the keys.
        OutputExistsError: The run is finished and the recipe asks for no more steps.
    """
    run = RunDirectory.open(recipe.output)
    count = process_count()
    if run.processes != count:
        raise CheckpointError(
            f"Cannot resume {run.path}: got {count} {'process' if count == 1 else 'processes'}, "
            f"expected {run.processes} as at its start, because batches and random numbers depend "
            f"on it. Start {run.processes}, or train under another `output`."
        )
    before = _recipe_before(run)
    different = changed_keys(_with_first_defaults(before), _with_first_defaults(recipe))
    changed = [
        key
        for key in different
        if key not in _MAY_CHANGE_ON_RESUME and key.partition(".")[0] not in _IGNORED_SECTIONS
    ]
    if changed:
        raise CheckpointError(
            f"Cannot resume {run.path}: the recipe now differs from {run.recipe_file} in "
            f"{', '.join(changed)}, expected changes in training.num_train_epochs or "
            "training.max_steps only. Undo the changes, or train under another `output`."
        )
    lineage = run_lineage.read_lineage(run.environment_file)
    recorded = None if lineage is None else lineage.base_digest
    digest = None if recorded is None else base_digest(recipe.model, recipe.revision)
    if are_different(recorded, digest):
        raise CheckpointError(
            f"Cannot resume {run.path}: the weights of model '{recipe.model}' have changed since "
            f"the run started, got the digest {str(digest)[:12]}, expected {str(recorded)[:12]}. "
            "Restore them, or train under another `output`."
        )
    if run.is_finished and not _asks_for_more(before.training, recipe.training):
        raise OutputExistsError(
            f"Nothing to resume in {run.path}: the run is finished, its adapter is "
            f"{run.adapter}. Raise training.num_train_epochs to train on, or set another `output`."
        )


def note_new_schedule(run: RunDirectory, recipe: Recipe) -> str | None:
    """Return a note if a resumed run is of another length, and so has another learning rate.

    Call it before the recipe is written into the run.
    """
    before, now = _recipe_before(run).training, recipe.training
    changed = [
        f"training.{key} was {before.get(key, unset):g} and is {now.get(key, unset):g}"
        for key, unset in (("num_train_epochs", 3), ("max_steps", -1))
        if before.get(key, unset) != now.get(key, unset)
    ]
    if not changed or str(now.get("lr_scheduler_type", "")).startswith("constant"):
        return None
    return (
        f"{' and '.join(changed)}: the learning rate goes on as in a run that was planned so from "
        "its start, so it may rise at this step."
    )


def note_lost_metrics(run: RunDirectory, checkpoint: Path) -> str | None:
    """Return a note if metrics.jsonl lacks rows that the run had written before a checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    logged = [(event_of(values), values["step"]) for values in state["log_history"]]
    kept = {(row.get("event"), row.get("step")) for row in run.metrics()}
    lost = [f"{event} {step}" for event, step in logged if (event, step) not in kept]
    if not lost:
        return None
    return (
        f"{run.metrics_file.name} has lost {len(lost)} of the {len(logged)} rows before "
        f"{checkpoint.name} ({first_few(lost)}); the report lacks them too."
    )


def _recipe_before(run: RunDirectory) -> Recipe:
    try:
        return run.recipe()
    except ConfigError as error:
        raise CheckpointError(
            f"Cannot resume {run.path}: {run.recipe_file} is damaged ({error}). Replace it with a "
            "copy of the recipe that the run started with, and resume again."
        ) from None


def _with_first_defaults(recipe: Recipe) -> Recipe:
    """Return a recipe that names the defaults that runs of the first version did not write out."""
    training = {"train_sampling_strategy": "random", **recipe.training}
    return recipe.model_copy(update={"training": training})


def _asks_for_more(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether a recipe trains longer than before; max_steps takes precedence over epochs."""
    steps_before, steps_now = (values.get("max_steps", -1) for values in (before, now))
    if steps_before > 0 and steps_now > 0:
        return steps_now > steps_before
    return steps_before == steps_now and now["num_train_epochs"] > before["num_train_epochs"]

"""Save the settings of a training run that inference needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorakit.adapters.inference_settings import SETTINGS_FILE, InferenceSettings
from lorakit.config import TaskType
from lorakit.training.tasks.base import Encoded

__all__ = ["SETTINGS_FILE", "InferenceSettings", "save_settings"]


def save_settings(
    adapter_dir: str | Path,
    task_type: TaskType,
    labels: tuple[str, ...] | None,
    encoded: Encoded,
    chosen: Mapping[str, Any] | None = None,
) -> Path:
    """Write `lorakit.json` beside an adapter, atomically.

    Args:
        adapter_dir: The adapter's directory, which exists.
        task_type: The task of the run.
        labels: Class or tag names by id, for tasks that have them.
        encoded: The result of the task's `encode`.
        chosen: Further settings, chosen on the validation examples.

    Returns: The path of the file.
    """
    values: dict[str, Any] = {"task_type": task_type, "labels": labels, **encoded.settings}
    values |= chosen or {}
    return InferenceSettings(**values).save(adapter_dir)

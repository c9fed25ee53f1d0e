"""What inference has to repeat of a training run, written beside its adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from lorakit.atomic import write_text
from lorakit.config import QuantizationConfig, StrictConfig, TaskType
from lorakit.errors import AdapterFileError
from lorakit.training.tasks.base import Encoded

SETTINGS_FILE = "lorakit.json"


class InferenceSettings(StrictConfig):
    """How a trained adapter expects its inputs; the contents of `lorakit.json`.

    Other readers of the adapter's directory take no notice of the file.
    """

    task_type: TaskType | None = None
    labels: tuple[str, ...] | None = None
    """Class or tag names by id."""

    dtype: str | None = None
    """Of the base weights in training, such as "bfloat16"; None for a quantised base."""

    quantization: QuantizationConfig | None = None
    """How the base was kept in training."""

    seed: int = 42
    """With which weights that the base does not have (a head) were drawn."""

    max_length: int | None = Field(None, ge=1)
    """To how many tokens an input was cut."""

    max_target_length: int | None = Field(None, ge=1)
    source_prefix: str = ""
    format: str | None = None
    """The layout of the training rows: text, prompt_completion, messages or alpaca."""

    stop_token_ids: tuple[int, ...] = ()
    """The tokens that end an answer, besides the model's own end-of-text token."""

    text_pair: bool = False
    """Whether an input is a pair of texts."""

    @classmethod
    def load(cls, adapter_dir: str | Path) -> InferenceSettings:
        """Read the settings beside an adapter; an adapter of another tool has none.

        Raises:
            AdapterFileError: The file is damaged.
        """
        path = Path(adapter_dir) / SETTINGS_FILE
        if not path.is_file():
            return cls()
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise AdapterFileError(
                f"Could not read {path}: {error}; expected a JSON object. Delete the file, and "
                "the adapter is used without labels; or take it from a backup."
            ) from None
        return cls.parse(values, str(path))


def save_settings(
    adapter_dir: str | Path,
    task_type: TaskType,
    labels: tuple[str, ...] | None,
    encoded: Encoded,
) -> Path:
    """Write `lorakit.json` beside an adapter, at once and whole.

    Args:
        adapter_dir: The adapter's directory; it must be there.
        task_type: The task of the run.
        labels: Class or tag names by id, for tasks that have them.
        encoded: What the task's `encode` returned.

    Returns: The path of the file.
    """
    values: dict[str, Any] = {"task_type": task_type, "labels": labels, **encoded.settings}
    settings = InferenceSettings(**values)
    path = Path(adapter_dir) / SETTINGS_FILE
    written = settings.model_dump(mode="json", exclude_defaults=True)
    if settings.quantization is not None:  # all of it: other versions may have other defaults
        written["quantization"] = settings.quantization.model_dump(mode="json")
    text = json.dumps(written, indent=2)
    write_text(path, text + "\n")
    return path

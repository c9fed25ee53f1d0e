"""What inference has to know of an adapter beside its two files: task, class names, inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field
from torch import nn

from lorakit.config import LoraConfig, QuantizationConfig, StrictConfig, TaskType
from lorakit.errors import AdapterFileError, ConfigError
from lorakit.files.atomic import write_text
from lorakit.injection.selection.heads import TASKS_WITH_HEADS
from lorakit.injection.state import unwrapped

SETTINGS_FILE = "lorakit.json"


class InferenceSettings(StrictConfig):
    """How a trained adapter expects its inputs; the contents of `lorakit.json`.

    Other readers of the adapter's directory take no notice of the file.
    """

    task_type: TaskType | None = None
    labels: tuple[str, ...] | None = None
    """Class or tag names by id."""

    dtype: str | None = None
    """dtype of the base weights in training, such as "bfloat16"; None for a quantised base."""

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

    def save(self, adapter_dir: str | Path) -> Path:
        """Write `lorakit.json` beside an adapter, at once and whole; return its path."""
        path = Path(adapter_dir) / SETTINGS_FILE
        written = self.model_dump(mode="json", exclude_defaults=True)
        if self.quantization is not None:  # all of it: other versions may have other defaults
            written["quantization"] = self.quantization.model_dump(mode="json")
        write_text(path, json.dumps(written, indent=2) + "\n")
        return path


def save_class_names(model: nn.Module, config: LoraConfig, adapter_dir: str | Path) -> list[Path]:
    """Write the class names of a classifier beside its adapter, as a training run does.

    What stands in a `lorakit.json` that is there already stays, if it is for the same task.

    Args:
        model: A model of transformers whose configuration has the names; of others nothing is
            written.
        config: The adapter's.
        adapter_dir: The adapter's directory; it must be there.

    Returns: The path of the file, if one was written.
    """
    names = getattr(getattr(unwrapped(model), "config", None), "id2label", None)
    if config.task_type not in TASKS_WITH_HEADS or not isinstance(names, Mapping):
        return []
    try:
        settings = InferenceSettings.load(adapter_dir)
    except (AdapterFileError, ConfigError):
        settings = InferenceSettings()
    if settings.task_type != config.task_type:
        settings = InferenceSettings(task_type=config.task_type)
    labels = tuple(str(names[index]) for index in sorted(names))
    return [settings.model_copy(update={"labels": labels}).save(adapter_dir)]

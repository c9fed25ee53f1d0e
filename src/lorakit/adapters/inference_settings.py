"""Settings for inference, stored beside an adapter's two files: task, class names, inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from pydantic import Field
from torch import nn

from lorakit.adapters.lineage import Lineage
from lorakit.config import LoraConfig, ProblemType, QuantizationConfig, StrictConfig, TaskType
from lorakit.errors import AdapterFileError, ConfigError
from lorakit.files.atomic import write_text
from lorakit.injection.selection.heads import TASKS_WITH_HEADS
from lorakit.injection.state import unwrap

SETTINGS_FILE = "lorakit.json"


class InferenceSettings(StrictConfig):
    """Task and input format of a trained adapter; the contents of `lorakit.json`.

    Other readers of the adapter's directory ignore the file.
    """

    task_type: TaskType | None = None
    labels: tuple[str, ...] | None = None
    """Class or tag names by id."""

    problem_type: ProblemType | None = None
    """What a text classifier predicts; None is one class."""

    thresholds: tuple[float, ...] = ()
    """Probability above which each of several labels is predicted; 0.5 if there are none."""

    dtype: str | None = None
    """Dtype of the base weights in training, such as "bfloat16"; None for a quantized base."""

    quantization: QuantizationConfig | None = None
    """Quantization of the base in training."""

    seed: int = 42
    """Seed of weights that the base does not have, such as a head."""

    max_length: int | None = Field(None, ge=1)
    """Number of tokens to which inputs were truncated."""

    max_target_length: int | None = Field(None, ge=1)
    num_beams: int | None = Field(None, ge=1)
    """Beams with which a sequence-to-sequence model was evaluated; None takes the base's."""

    source_prefix: str = ""
    format: str | None = None
    """Layout of the training examples: text, prompt_completion, messages or alpaca."""

    system_prompt: str | None = None
    """System message of the training conversations, for prompts that begin with none."""

    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer, besides the model's end-of-text token."""

    text_pair: bool = False
    """Whether an input is a pair of texts."""

    lineage: Lineage | None = None
    """The base, the data and the adapters that the adapter comes from; None if it is not known."""

    @classmethod
    def load(cls, adapter_dir: str | Path) -> InferenceSettings:
        """Read the settings beside an adapter; defaults for an adapter of another tool.

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
                f"Could not read {path}: {error}; expected a JSON object. Restore it from a "
                "backup, or delete it to use the adapter without labels."
            ) from None
        return cls.parse(values, str(path))

    def save(self, adapter_dir: str | Path) -> Path:
        """Write `lorakit.json` beside an adapter atomically; return its path."""
        path = Path(adapter_dir) / SETTINGS_FILE
        written = self.model_dump(mode="json", exclude_defaults=True)
        if self.quantization is not None:  # in full, as defaults may change between versions
            written["quantization"] = self.quantization.model_dump(mode="json")
        write_text(path, json.dumps(written, indent=2) + "\n")
        return path


def save_class_names(model: nn.Module, config: LoraConfig, adapter_dir: str | Path) -> list[Path]:
    """Write the class names of a classifier beside its adapter, as a training run does.

    Other settings in an existing `lorakit.json` for the same task are kept.

    Args:
        model: A transformers model whose configuration has the names; nothing is written for other
            models.
        config: The adapter's configuration.
        adapter_dir: The adapter's existing directory.

    Returns: The path of the file, if it was written.
    """
    names = getattr(getattr(unwrap(model), "config", None), "id2label", None)
    if config.task_type not in TASKS_WITH_HEADS or not isinstance(names, Mapping):
        return []
    try:
        settings = InferenceSettings.load(adapter_dir)
    except (AdapterFileError, ConfigError):
        settings = InferenceSettings()
    if settings.task_type != config.task_type:
        settings = InferenceSettings(task_type=config.task_type)
    names = cast(Mapping[int, object], names)
    labels = tuple(str(names[index]) for index in sorted(names))
    return [settings.model_copy(update={"labels": labels}).save(adapter_dir)]

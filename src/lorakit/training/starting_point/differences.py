"""How an adapter was trained and how a recipe trains it on: notes on what differs, or a refusal."""

from __future__ import annotations

from pathlib import Path

from lorakit.adapters import Adapter
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.config import QuantizationConfig
from lorakit.data.chat import read_template
from lorakit.errors import ConfigError
from lorakit.inference.loaded import TASKS_WITH_LABELS
from lorakit.recipes.recipe import Recipe

_TEMPLATE_FILE = "chat_template.jinja"


def check_task(recipe: Recipe, parent: Adapter, settings: InferenceSettings) -> None:
    """Refuse an adapter of another task, or one without names for its classes.

    Raises:
        ConfigError: Says which.
    """
    task = parent.config.task_type or settings.task_type
    if task not in (None, recipe.task):
        raise ConfigError(
            f"The adapter of start_from '{recipe.start_from}' is for another task: got {task}, "
            f"expected {recipe.task} as in the recipe. Change task, or start from another adapter."
        )
    if recipe.task in TASKS_WITH_LABELS and settings.labels is None:
        raise ConfigError(
            f"The adapter of start_from '{recipe.start_from}' does not say which output is which "
            "class: got no labels in lorakit.json, expected their names in the order of the "
            'outputs. Write {"labels": ["...", "..."]} into lorakit.json beside it.'
        )


def quantization_notes(recipe: Recipe, settings: InferenceSettings, was_loftq: bool) -> list[str]:
    """Return a note if the parent was trained on a base of another precision.

    Raises:
        ConfigError: It makes up for a quantization that this base does not have.
    """
    before, now = settings.quantization, recipe.quantization
    if _storage(before) == _storage(now):
        return []
    if was_loftq:
        raise ConfigError(
            f"The adapter of start_from '{recipe.start_from}' was initialized with loftq: got a "
            f"base in {_storage(now)}, expected one in {_storage(before)}, whose quantization "
            "error it makes up for. Set the same quantization as in its recipe."
        )
    return [
        f"The adapter was trained on a base in {_storage(before)}, and is trained on here with one "
        f"in {_storage(now)}."
    ]


def training_notes(recipe: Recipe, companions: Path, first_recipe: Recipe | None) -> list[str]:
    """Return notes on the template and on slices, which are not as in the parent's training."""
    notes: list[str] = []
    template, file = recipe.training.get("chat_template_path"), companions / _TEMPLATE_FILE
    if (
        template is not None
        and file.is_file()
        and read_template(template) != file.read_text(encoding="utf-8")
    ):
        notes.append("training.chat_template_path replaces the chat template of the adapter.")
    if first_recipe is not None and first_recipe.lora.enable_lora:
        notes.append(
            "Files do not record lora.enable_lora: every slice of its fused matrices is trained."
        )
    return notes


def _storage(quantization: QuantizationConfig | None) -> str:
    if quantization is None:
        return "the precision of its checkpoint"
    kind = quantization.quant_type if quantization.bits == 4 else "int8"
    doubly = ", scales quantized" if quantization.bits == 4 and quantization.double_quant else ""
    return f"{quantization.bits} bits ({kind}{doubly})"

"""Import path of earlier versions for the names of `lorakit.inference`."""

from lorakit.inference import (
    Classification,
    InferenceSettings,
    LoadedModel,
    Prompt,
    TaggedWord,
    classify,
    generate_text,
    load_for_inference,
    tag,
)
from lorakit.training.tasks.base import save_settings

__all__ = [
    "Classification",
    "InferenceSettings",
    "LoadedModel",
    "Prompt",
    "TaggedWord",
    "classify",
    "generate_text",
    "load_for_inference",
    "save_settings",
    "tag",
]

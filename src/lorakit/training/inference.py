"""Use a trained adapter: load it on its base, generate texts, classify texts, tag words."""

from lorakit.training.generation import Prompt, generate_text
from lorakit.training.loaded import LoadedModel, load_for_inference
from lorakit.training.prediction import Classification, TaggedWord, classify, tag
from lorakit.training.tasks.settings import InferenceSettings, save_settings

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

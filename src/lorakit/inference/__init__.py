"""Use a trained adapter: load it on its base, generate texts, classify texts, tag words."""

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.inference.generation import Prompt, generate_text
from lorakit.inference.loaded import LoadedModel, load_for_inference
from lorakit.inference.prediction import Classification, TaggedWord, classify, find_words, tag

__all__ = [
    "Classification",
    "InferenceSettings",
    "LoadedModel",
    "Prompt",
    "TaggedWord",
    "classify",
    "find_words",
    "generate_text",
    "load_for_inference",
    "tag",
]

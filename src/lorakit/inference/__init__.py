"""Use a trained adapter: load it on its base, generate texts, classify texts, tag words."""

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.inference.file_predictions import FilePredictions, PredictionSettings, predict_file
from lorakit.inference.generation import Prompt, generate_text
from lorakit.inference.loaded import LoadedModel, load_for_inference
from lorakit.inference.prediction import (
    Classification,
    LabelSet,
    Numbers,
    TaggedWord,
    classify,
    find_words,
    tag,
)
from lorakit.inference.predictions import LoadedRun, load_run, predict

__all__ = [
    "Classification",
    "FilePredictions",
    "InferenceSettings",
    "LabelSet",
    "LoadedModel",
    "LoadedRun",
    "Numbers",
    "PredictionSettings",
    "Prompt",
    "TaggedWord",
    "classify",
    "find_words",
    "generate_text",
    "load_for_inference",
    "load_run",
    "predict",
    "predict_file",
    "tag",
]

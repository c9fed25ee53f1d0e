"""Use a trained adapter: load it on its base, generate texts, classify texts, tag words.

The names below are imported on first use.
"""

import typing as _typing

from lorakit.libraries.lazy_names import lazy_names as _lazy_names

if _typing.TYPE_CHECKING:
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
    from lorakit.inference.verification import Check, verify_adapter

__all__ = [
    "Check",
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
    "verify_adapter",
]

__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "lorakit.adapters.inference_settings": ("InferenceSettings",),
        "lorakit.inference.file_predictions": (
            "FilePredictions",
            "PredictionSettings",
            "predict_file",
        ),
        "lorakit.inference.generation": ("Prompt", "generate_text"),
        "lorakit.inference.loaded": ("LoadedModel", "load_for_inference"),
        "lorakit.inference.prediction": (
            "Classification",
            "LabelSet",
            "Numbers",
            "TaggedWord",
            "classify",
            "find_words",
            "tag",
        ),
        "lorakit.inference.predictions": ("LoadedRun", "load_run", "predict"),
        "lorakit.inference.verification": ("Check", "verify_adapter"),
    },
)

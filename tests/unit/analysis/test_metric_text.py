"""Names of metrics in words, and which of them are averages."""

import pytest

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.analysis.metric_text import has_averages, metric_text


@pytest.mark.parametrize(
    ("key", "task", "labels", "text"),
    [
        ("eval_f1", "SEQ_CLS", ("a", "b"), "macro f1"),
        ("eval_precision", "SEQ_CLS", ("a", "b", "c"), "macro precision"),
        ("eval_recall", "TOKEN_CLS", ("O", "B-PER"), "recall"),
        ("eval_f1", "TOKEN_CLS", ("noun", "verb"), "macro f1"),
        ("eval_accuracy", "SEQ_CLS", ("a", "b"), "accuracy"),
        ("eval_rouge_l", "SEQ_2_SEQ_LM", None, "rouge l"),
    ],
)
def test_averages_over_classes_alone_are_called_macro(key, task, labels, text):
    assert metric_text(key, InferenceSettings(task_type=task, labels=labels)) == text


@pytest.mark.parametrize(
    ("task", "labels", "are_averages"),
    [
        ("SEQ_CLS", [f"class {i}" for i in range(50)], True),
        ("SEQ_CLS", ["no", "yes"], True),
        ("TOKEN_CLS", [f"tag {i}" for i in range(50)], True),
        ("TOKEN_CLS", ["O", "B-PER", "I-PER"], False),
        ("CAUSAL_LM", [], False),
        (None, ["no", "yes"], False),
    ],
)
def test_entities_alone_are_not_averaged_over_classes(task, labels, are_averages):
    assert has_averages(task, labels) is are_averages

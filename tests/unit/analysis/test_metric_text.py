"""Names of metrics in words."""

import pytest

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.analysis.metric_text import metric_text


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

import pytest
import torch

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.serving.pooled.labels import (
    LabelledWord,
    Span,
    Word,
    label_words,
    spans,
    text_label,
)


def test_a_text_has_the_likeliest_label_and_all_probabilities():
    logits = torch.tensor([0.0, 2.0]).log_softmax(-1)
    found = text_label(logits, ("bad", "good"), InferenceSettings())
    assert found.label == "good"
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.probabilities["good"] == pytest.approx(torch.tensor(2.0).sigmoid().item())


def test_a_text_may_have_several_labels_or_numbers():
    logits = torch.tensor([0.5, -0.5, -3.0])
    several = InferenceSettings(
        problem_type="multi_label_classification", thresholds=(0.5, 0.3, 0.5)
    )
    found = text_label(logits, ("a", "b", "c"), several)
    assert found.label == "a" and found.chosen == ("a", "b")
    assert found.probabilities["a"] == pytest.approx(torch.tensor(0.5).sigmoid().item())
    numbers = text_label(logits, ("a", "b", "c"), InferenceSettings(problem_type="regression"))
    assert numbers.values == {"a": 0.5, "b": -0.5, "c": -3.0}
    assert numbers.label == "0.5, -0.5, -3" and numbers.probabilities == {}


def test_a_word_has_the_label_of_its_first_token():
    logits = torch.tensor([[9.0, 0], [0, 9], [9, 0], [9, 0]])
    words = [Word("Anna", 0, 4), Word("saw", 5, 8)]
    found = label_words(logits, [None, 0, 0, 1], words, ("O", "PER"))
    assert [(each.word.text, each.label) for each in found] == [("Anna", "PER"), ("saw", "O")]
    assert found[0].probability > 0.99


def labelled(*labels):
    return [LabelledWord(Word(str(i)), label, 1 - i / 100) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["O", "B-PER", "I-PER", "O"], [("PER", 1, 2)]),
        (["B-PER", "B-PER"], [("PER", 0, 0), ("PER", 1, 1)]),
        (["I-PER", "I-LOC"], [("PER", 0, 0), ("LOC", 1, 1)]),
        (["B-PER", "O", "I-PER"], [("PER", 0, 0), ("PER", 2, 2)]),
        (["NOUN", "NOUN", "VERB"], [("NOUN", 0, 1), ("VERB", 2, 2)]),
        (["B-", "X-RAY", "O"], [("B-", 0, 0), ("X-RAY", 1, 1)]),
        (["O"], []),
        ([], []),
    ],
)
def test_words_in_a_row_form_spans(labels, found):
    assert [(span.label, span.first, span.last) for span in spans(labelled(*labels))] == found


def test_a_span_is_as_sure_as_its_least_sure_word():
    assert spans(labelled("B-PER", "I-PER", "I-PER")) == [Span("PER", 0, 2, 0.98)]

import numpy as np
import pytest

from lorakit.analysis.example_scores import scores_of_tags
from lorakit.analysis.metrics import (
    ClassScores,
    WordTokenizer,
    class_scores,
    classification_metrics,
    confusion_counts,
    rouge_metrics,
    token_metrics,
)


def logits_for(predicted, classes):
    return np.eye(classes)[predicted] * 4.0


def test_two_classes_by_hand():
    truth = np.array([0, 0, 0, 1, 1])
    logits = logits_for([0, 0, 1, 1, 0], 2)

    metrics = classification_metrics(truth, logits, ["no", "yes"])

    # no: precision 2/3, recall 2/3; yes: precision 1/2, recall 1/2
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["precision"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics["recall"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics["f1_no"] == pytest.approx(2 / 3)
    assert metrics["f1_yes"] == pytest.approx(1 / 2)
    assert metrics["f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)


def test_scores_of_each_class_are_those_of_the_metrics():
    truth, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])
    counts = confusion_counts(truth, predicted, ["no", "yes", "never"])
    assert counts.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    no, yes, never = class_scores(counts, ["no", "yes", "never"])
    assert (no.label, no.examples, no.precision) == ("no", 3, pytest.approx(2 / 3))
    assert (yes.precision, yes.recall, yes.f1) == (0.5, 0.5, 0.5)
    assert never == ClassScores("never", 0, 0.0, 0.0, 0.0)
    metrics = classification_metrics(truth, logits_for(predicted, 3), ["no", "yes", "never"])
    assert [no.f1, yes.f1] == pytest.approx([metrics["f1_no"], metrics["f1_yes"]])


def test_roc_auc_ranks_rows_by_the_second_class():
    truth = np.array([0, 0, 1, 1])
    scores = np.array([0.1, 0.6, 0.4, 0.9])  # 3 of the 4 pairs are in order
    logits = np.stack([np.zeros(4), scores], 1)

    assert classification_metrics(truth, logits, ["a", "b"])["roc_auc"] == pytest.approx(0.75)
    assert "roc_auc" not in classification_metrics(truth * 0, logits, ["a", "b"])
    assert "roc_auc" not in classification_metrics(truth, logits_for(truth, 3), ["a", "b", "c"])


def test_classes_that_occur_nowhere_do_not_count():
    truth = np.array([0, 1])

    metrics = classification_metrics(truth, logits_for([0, 1], 4), ["a", "b", "c", "d"])

    assert metrics["f1"] == 1.0
    assert "f1_c" not in metrics


def test_many_classes_have_no_f1_of_their_own():
    labels = [f"class {i}" for i in range(21)]

    metrics = classification_metrics(np.arange(21), logits_for(np.arange(21), 21), labels)

    assert set(metrics) == {"accuracy", "precision", "recall", "f1"}


def test_entities_count_only_when_whole():
    labels = ["O", "B-PER", "I-PER", "B-LOC"]
    truth = np.array([[-100, 1, 2, 0, 3, -100]])
    half = np.array([[0, 1, 0, 0, 3, 3]])  # the person's second word is missed

    metrics = token_metrics(truth, logits_for(half, 4), labels)

    assert metrics == {
        "accuracy": pytest.approx(3 / 4),
        "precision": pytest.approx(1 / 2),  # PER (too short) and LOC were found
        "recall": pytest.approx(1 / 2),
        "f1": pytest.approx(1 / 2),
    }


def test_neighbouring_entities_of_bilou_are_separate():
    labels = ["O", "B-PER", "L-PER", "U-PER"]
    truth = np.array([[1, 2, 3, 3]])  # three persons, one of two words
    last = np.array([[1, 2, 3, 0]])

    metrics = token_metrics(truth, logits_for(last, 4), labels)

    assert metrics["precision"] == 1 and metrics["recall"] == pytest.approx(2 / 3)
    assert scores_of_tags(truth, last, labels).mean == pytest.approx(metrics["f1"])


def test_other_tags_are_scored_word_by_word():
    truth = np.array([[-100, 0, 1], [1, 1, -100]])
    predicted = np.array([[1, 0, 0], [1, 1, 0]])

    metrics = token_metrics(truth, logits_for(predicted, 2), ["NOUN", "VERB"])

    assert metrics["accuracy"] == pytest.approx(3 / 4)
    assert metrics["f1_NOUN"] == pytest.approx(2 / 3)
    assert metrics["f1_VERB"] == pytest.approx(4 / 5)
    assert "roc_auc" not in metrics


def test_rouge_by_hand():
    metrics = rouge_metrics(["the cat sat"], ["the cat ran off"])

    # 2 common words of 3 and of 4; 1 common pair of 2 and of 3
    assert metrics["rouge1"] == pytest.approx(2 * (2 / 4 * 2 / 3) / (2 / 4 + 2 / 3))
    assert metrics["rouge2"] == pytest.approx(2 * (1 / 3 * 1 / 2) / (1 / 3 + 1 / 2))
    assert metrics["rougeL"] == metrics["rouge1"] == metrics["rougeLsum"]


def test_rouge_words_are_those_of_rouge_score_and_of_other_scripts():
    from rouge_score.tokenizers import DefaultTokenizer  # imports nltk, for a second

    text = "It's 2 o'clock_now: U.S. GDP grew 3.5%!"
    assert WordTokenizer().tokenize(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)
    assert WordTokenizer().tokenize("Größe и 東京") == ["größe", "и", "東", "京"]
    assert rouge_metrics(["привет мир"], ["привет мир"])["rouge1"] == 1.0

import numpy as np
import pytest

from lorakit.analysis.example_scores import (
    ExampleScores,
    scores_of_classes,
    scores_of_tags,
    scores_of_texts,
)
from lorakit.analysis.metrics import rouge_metrics, token_metrics

ENTITIES = ("O", "B-LOC", "I-LOC", "B-PER")


def random_tags(seed, labels):
    generator = np.random.default_rng(seed)
    expected = generator.integers(len(labels), size=(30, 9))
    expected[generator.random(expected.shape) < 0.2] = -100
    logits = generator.normal(size=(*expected.shape, len(labels)))
    logits += 2 * np.eye(len(labels))[np.maximum(expected, 0)]
    return expected, logits


def test_the_mean_of_classes_is_the_accuracy():
    scores = scores_of_classes(np.array([0, 1, 2, 1]), np.array([0, 1, 1, 1]))
    assert scores.points.tolist() == [1, 1, 0, 1] and scores.mean == 0.75
    assert scores.metric == "accuracy" and len(scores) == 4 and scores.is_finite


def test_the_ratio_of_entities_is_seqevals_micro_f1():
    expected, logits = random_tags(0, ENTITIES)
    scores = scores_of_tags(expected, logits.argmax(-1), ENTITIES)
    assert scores.metric == "F1" and len(scores) == 30
    assert scores.mean == pytest.approx(token_metrics(expected, logits, ENTITIES)["f1"])


def test_other_tags_are_scored_word_by_word():
    labels = ("NOUN", "VERB", "DET")
    expected, logits = random_tags(1, labels)
    scores = scores_of_tags(expected, logits.argmax(-1), labels)
    assert scores.metric == "word accuracy"
    assert scores.mean == pytest.approx(token_metrics(expected, logits, labels)["accuracy"])


def test_the_mean_of_texts_is_rouge_l():
    targets, generated = ["a b c", "春天来了", "x"], ["a c", "春天", "y"]
    scores = scores_of_texts(targets, generated)
    assert scores.metric == "ROUGE-L"
    assert scores.mean == pytest.approx(rouge_metrics(targets, generated)["rougeL"])


def losses(points, weights):
    return ExampleScores("perplexity", np.array(points, float), np.array(weights, float))


def test_losses_are_weighted_by_tokens_and_may_be_no_numbers():
    scores = losses([4, 1], [2, 8])
    assert scores.mean == 0.5 and scores.is_finite
    assert not losses([float("nan")], [1]).is_finite
    assert losses([], []).mean == 0.0


def test_scores_in_the_order_of_the_data():
    scores = losses([4, 1], [2, 8]).reorder([7, 3, 5])
    assert scores.points.tolist() == [1, 4] and scores.weights.tolist() == [8, 2]

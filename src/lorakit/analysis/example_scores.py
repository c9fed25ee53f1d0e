"""How well a model does on each example, so that two models can be compared on the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lorakit.analysis.metrics import WordTokenizer, is_entity_scheme
from lorakit.config import NOT_COUNTED

Metric = Literal["accuracy", "word accuracy", "F1", "ROUGE-L", "perplexity"]


@dataclass(frozen=True)
class ExampleScores:
    """Points and weights of examples; the score of several is Σ points / Σ weights.

    Accuracy has a weight of 1 for each example. The F1 of entities, 2·hits / (found + true), is
    such a ratio too, and so is the mean loss of tokens, whose exponential is the perplexity.
    """

    metric: Metric
    points: Any
    """Array (examples,), float64."""
    weights: Any
    """Array (examples,), float64."""

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.points)

    def reordered(self, order: Sequence[int]) -> ExampleScores:
        """Return the scores in the order of the data.

        Args:
            order: Index in the data of each scored example; there may be more, at the end.
        """
        places = np.argsort(np.asarray(order[: len(self)]), kind="stable")
        return ExampleScores(self.metric, self.points[places], self.weights[places])

    @property
    def mean(self) -> float:
        """The score of all examples; for perplexity the mean loss of a token."""
        total = float(self.weights.sum())
        return float(self.points.sum()) / total if total else 0.0

    @property
    def is_finite(self) -> bool:
        """Whether every score is a number."""
        return bool(np.isfinite(self.points).all())


def scores_of_classes(expected: Any, predicted: Any) -> ExampleScores:
    """Score classes: 1 for a correct one.

    Args:
        expected: True classes, array (examples,).
        predicted: Predicted classes, array (examples,).
    """
    right = (np.asarray(expected) == np.asarray(predicted)).astype(np.float64)
    return ExampleScores("accuracy", right, np.ones_like(right))


def scores_of_tags(expected: Any, predicted: Any, labels: Sequence[str]) -> ExampleScores:
    """Score tags: entities found by kind and both ends, or words if the tags mark no entities.

    Args:
        expected: True tags, array (examples, tokens); -100 for tokens that do not count.
        predicted: Predicted tags, array (examples, tokens).
        labels: Tag names by id.
    """
    counted = expected != NOT_COUNTED
    if not is_entity_scheme(labels):
        right = ((expected == predicted) & counted).sum(1).astype(np.float64)
        return ExampleScores("word accuracy", right, counted.sum(1).astype(np.float64))
    from seqeval.metrics.sequence_labeling import get_entities

    names: Any = np.array(labels)
    points, weights = [], []
    for true_row, row, at in zip(expected, predicted, counted, strict=True):
        true = set(get_entities(names[true_row[at]].tolist()))
        found = set(get_entities(names[row[at]].tolist()))
        points.append(2 * len(true & found))
        weights.append(len(true) + len(found))
    return ExampleScores("F1", np.array(points, np.float64), np.array(weights, np.float64))


def scores_of_texts(expected: Sequence[str], generated: Sequence[str]) -> ExampleScores:
    """Score generated texts by the F-measure of ROUGE-L with their targets, from 0 to 1."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], tokenizer=WordTokenizer())
    points = [
        scorer.score(target, text)["rougeL"].fmeasure
        for target, text in zip(expected, generated, strict=True)
    ]
    return ExampleScores("ROUGE-L", np.array(points, np.float64), np.ones(len(points)))


def scores_of_losses(sums: Any) -> ExampleScores:
    """Score texts by their loss.

    Args:
        sums: Summed negative log-likelihood and number of counted tokens, array (texts, 2).
    """
    wide = np.asarray(sums, np.float64)
    return ExampleScores("perplexity", wide[:, 0], wide[:, 1])

"""How well a model does on each example, so that two models can be compared on the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from lorakit.analysis.metrics import WordTokenizer, is_entity_scheme, seqeval_names
from lorakit.config import NOT_COUNTED

Metric = Literal[
    "accuracy",
    "word accuracy",
    "preference accuracy",
    "F1",
    "micro F1",
    "macro F1",
    "ROUGE-L",
    "perplexity",
    "RMSE",
    "MAE",
]
RELATIVE_METRICS: tuple[Metric, ...] = ("perplexity", "RMSE", "MAE")
"""Metrics that are better the lower they are, and whose differences are shares."""
_SMALLEST = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class ExampleScores:
    """Points and weights of examples; the score of several is Σ points / Σ weights.

    Accuracy has a weight of 1 for each example. The F1 of entities, 2·hits / (found + true), is
    such a ratio too, and so is the mean loss of tokens, whose exponential is the perplexity, and
    the mean squared error, whose root is the RMSE. An example may have several parts, such as the
    labels of a macro F1, whose scores are averaged.
    """

    metric: Metric
    points: Any
    """Array (examples,) or (examples, parts), float64."""
    weights: Any
    """Array of the same shape, float64."""

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.points)

    def reorder(self, order: Sequence[int]) -> ExampleScores:
        """Return the scores in the order of the data.

        Args:
            order: Index in the data of each scored example; there may be more, at the end.
        """
        places = np.argsort(np.asarray(order[: len(self)]), kind="stable")
        return replace(self, points=self.points[places], weights=self.weights[places])

    @property
    def columns(self) -> Any:
        """Points and weights beside each other, array (examples, 2·parts)."""
        return np.concatenate(
            [one.reshape(len(self), -1) for one in (self.points, self.weights)], 1
        )

    def level(self, sums: Any) -> Any:
        """Return the score of summed columns, or its logarithm for a relative metric.

        Levels are what is subtracted from each other. A part without weight does not count.

        Args:
            sums: Array (..., 2·parts).

        Returns: Array (...,).
        """
        points, weights = np.split(sums, 2, -1)
        is_there = weights > 0
        scores = np.where(is_there, points, 0.0) / np.where(is_there, weights, 1.0)
        if self.metric == "RMSE":
            scores = np.sqrt(scores)
        mean = scores.sum(-1) / np.maximum(is_there.sum(-1), 1)
        has_logarithm = self.metric in ("RMSE", "MAE")  # a loss is one already
        return np.log(np.maximum(mean, _SMALLEST)) if has_logarithm else mean

    @property
    def mean(self) -> float:
        """The level of all examples; for perplexity the mean loss of a token."""
        return float(self.level(self.columns.sum(0))) if len(self) else 0.0

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

    names: Any = np.array(seqeval_names(labels))
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


def scores_of_label_sets(expected: Any, predicted: Any) -> tuple[ExampleScores, ExampleScores]:
    """Score sets of labels by their F1: micro, over all decisions, and macro, label by label.

    Args:
        expected: 1 or True where an example has a label, array (examples, labels).
        predicted: Where it is predicted, of the same shape.
    """
    true, found = np.asarray(expected) > 0, np.asarray(predicted) > 0
    points = 2.0 * (true & found)
    weights = true.astype(np.float64) + found
    return (
        ExampleScores("micro F1", points.sum(1), weights.sum(1)),
        ExampleScores("macro F1", points, weights),
    )


def scores_of_numbers(expected: Any, predicted: Any) -> tuple[ExampleScores, ExampleScores]:
    """Score numbers by RMSE and MAE, averaged over the numbers of an example.

    Args:
        expected: True numbers, array (examples,) or (examples, numbers).
        predicted: Predicted numbers, of the same size.
    """
    true = np.asarray(expected, np.float64)
    true = true.reshape(len(true), -1)
    errors = np.abs(true - np.asarray(predicted, np.float64).reshape(true.shape))
    weights = np.ones_like(errors)
    return ExampleScores("RMSE", errors**2, weights), ExampleScores("MAE", errors, weights)

"""What a model predicts for the validation examples, from the scores of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lorakit.analysis.example_scores import (
    ExampleScores,
    scores_of_classes,
    scores_of_label_sets,
    scores_of_numbers,
    scores_of_tags,
)
from lorakit.analysis.metrics import ClassScores, class_scores, confusion_counts, label_scores
from lorakit.analysis.target_metrics import label_probabilities
from lorakit.config import NOT_COUNTED

MOST_EXAMPLES = 10_000
"""Largest number of examples whose predictions are kept, the first of the data."""
MOST_CLASSES = 30
"""Largest number of classes whose confusion is counted; a larger table cannot be read."""

_NEW_COLUMNS = ("prediction", "base_prediction", "probability", "predicted_words")


@dataclass(frozen=True)
class Predicted:
    """Predictions for the first examples of an evaluation, in the order of the data."""

    numbers: Sequence[int]
    """Index of each example in the data."""
    columns: dict[str, list[Any]]
    """Values of the new columns, one for each example."""
    total: int
    """Number of examples of the evaluation."""
    labels: tuple[str, ...] = ()
    """Class names by id; none where the predictions are not classes of whole examples."""
    confusion: Any = field(default=None, compare=False)
    """Examples by expected and predicted class, array (classes, classes), over all examples of the
    evaluation; None without classes, and with more than 30."""
    classes: tuple[ClassScores, ...] = ()
    """Scores of each class or label over all examples; none with more than 30."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of inference that were chosen on these examples."""
    scores: tuple[ExampleScores, ...] = field(default=(), compare=False)
    """Score of each example of the evaluation in the order of the data, by each metric that models
    are compared by, the main one first."""

    def beside_base(self, base: Predicted) -> Predicted:
        """Return the predictions with a column of those of the base on the same examples."""
        columns: dict[str, list[Any]] = {}
        for name, values in self.columns.items():
            columns[name] = values
            if name == "prediction":
                columns["base_prediction"] = base.columns[name]
        return replace(self, columns=columns)


@dataclass(frozen=True)
class Evaluated:
    """The arrays of an evaluation, whose examples may be in another order than the data."""

    scores: Any
    """Logits, or token ids of generated texts, array (examples, ...)."""
    label_ids: Any
    """What is expected, array (examples, ...)."""
    order: Sequence[int]
    """Index in the data of each evaluated example."""

    @cached_property
    def rows(self) -> Any:
        """The rows of the arrays in the order of the data, array (examples,)."""
        return np.argsort(np.asarray(self.order[: len(self.label_ids)]), kind="stable")

    @property
    def kept(self) -> Any:
        """Those of the examples whose predictions are kept."""
        return self.rows[:MOST_EXAMPLES]

    @property
    def numbers(self) -> list[int]:
        """Index of each of these in the data."""
        return [self.order[row] for row in self.kept]


def predict_classes(found: Evaluated, labels: Sequence[str]) -> Predicted:
    """Return the class of each example and its probability, as `classify` does.

    Args:
        found: Scores (examples, classes) and true classes (examples,).
        labels: Class names by id.
    """
    best = _best(found.scores[found.kept])
    every = _best(found.scores).indices.numpy()
    confusion, classes = None, ()
    if len(labels) <= MOST_CLASSES:
        confusion = confusion_counts(found.label_ids, every, labels)
        classes = class_scores(confusion, labels)
    return Predicted(
        found.numbers,
        {
            "prediction": [labels[at] for at in best.indices.tolist()],
            "probability": best.values.tolist(),
        },
        len(found.label_ids),
        tuple(labels),
        confusion,
        classes,
        scores=(scores_of_classes(found.label_ids[found.rows], every[found.rows]),),
    )


def predict_label_sets(
    found: Evaluated, labels: Sequence[str], thresholds: Sequence[float]
) -> Predicted:
    """Return the labels of each example and the probabilities of all, as `classify` does.

    Args:
        found: Scores (examples, labels) and true labels (examples, labels).
        labels: Names of the labels.
        thresholds: Probability above which each is predicted.
    """
    every = label_probabilities(found.scores)
    probabilities = every[found.kept].tolist()
    thresholds = tuple(thresholds) or (0.5,) * len(labels)
    expected = found.label_ids[found.rows]
    predicted = every[found.rows] > np.asarray(thresholds)
    columns: dict[str, list[Any]] = {
        "prediction": [
            [name for name, p, least in zip(labels, row, thresholds, strict=True) if p > least]
            for row in probabilities
        ],
        "probability": [dict(zip(labels, row, strict=True)) for row in probabilities],
    }
    return Predicted(
        found.numbers,
        columns,
        len(found.label_ids),
        classes=label_scores(expected, predicted, labels) if len(labels) <= MOST_CLASSES else (),
        settings={"thresholds": thresholds},
        scores=scores_of_label_sets(expected, predicted),
    )


def predict_numbers(found: Evaluated, labels: Sequence[str]) -> Predicted:
    """Return the predicted number of each example, or a list of several.

    Args:
        found: Scores (examples, numbers) and true numbers.
        labels: Names of the numbers.
    """
    kept = found.scores[found.kept].tolist()
    return Predicted(
        found.numbers,
        {"prediction": [row[0] if len(labels) == 1 else row for row in kept]},
        len(found.label_ids),
        scores=scores_of_numbers(found.label_ids[found.rows], found.scores[found.rows]),
    )


def predict_tags(found: Evaluated, labels: Sequence[str]) -> Predicted:
    """Return the tags of each example and their probabilities, as `tag` does.

    A word that is cut off, or has no token, has no tag.

    Args:
        found: Scores (examples, tokens, tags) and true tags (examples, tokens), -100 for tokens
            that do not count.
        labels: Tag names by id.
    """
    counted = found.label_ids != NOT_COUNTED
    every = [_best(found.scores[row][counted[row]]) for row in found.kept]
    columns = {
        "prediction": [[labels[at] for at in best.indices.tolist()] for best in every],
        "probability": [best.values.tolist() for best in every],
    }
    tags = found.scores.argmax(-1)[found.rows]
    scores = scores_of_tags(found.label_ids[found.rows], tags, labels)
    return Predicted(found.numbers, columns, len(found.label_ids), scores=(scores,))


def prediction_table(
    inputs: Mapping[str, list[Any]],
    answer: str,
    answers: list[Any],
    predicted: Mapping[str, list[Any]],
) -> dict[str, list[Any]]:
    """Return inputs, answers and predictions by column, as `lorakit predict` names them.

    A column of the data that has the name of a new one gets another: "expected" for the answers,
    "input_<name>" for an input.

    >>> list(prediction_table({"expected": ["a"]}, "prediction", ["b"], {"prediction": ["c"]}))
    ['input_expected', 'expected', 'prediction']
    """
    taken = {*_NEW_COLUMNS, "expected"}
    named = {f"input_{name}" if name in taken else name: inputs[name] for name in inputs}
    return {**named, "expected" if answer in _NEW_COLUMNS else answer: answers, **predicted}


def _best(scores: Any) -> Any:
    """Return values and indices of the largest probabilities over the last dimension."""
    return torch.from_numpy(scores).float().softmax(-1).max(-1)

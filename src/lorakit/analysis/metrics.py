"""Compute evaluation metrics from 0 to 1 with scikit-learn, seqeval and rouge-score."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorakit.analysis.metric_text import MOST_CLASSES_LISTED, is_entity_scheme
from lorakit.config import NOT_COUNTED

ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
# Each Chinese or Japanese character is a word; other words are sequences of letters and digits.
_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


def classification_metrics(label_ids: Any, logits: Any, labels: Sequence[str]) -> dict[str, float]:
    """Compare predicted classes with the true ones.

    Precision, recall and F1 are macro averages: every class has the same weight. Up to 20 classes
    also have a separate F1, under "f1_<label>". With two classes, roc_auc is the probability that
    an example of the second class gets a higher score for it than an example of the first.

    Args:
        label_ids: True classes, array (examples,).
        logits: Scores, array (examples, classes).
        labels: Class names by id.
    """
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support, roc_auc_score

    ids = list(range(len(labels)))
    predicted = logits.argmax(-1)
    # A class that occurs neither in truth nor in predictions says nothing about the model.
    present = [i for i in ids if (label_ids == i).any() or (predicted == i).any()]
    no_value: Any = 0.0  # for a class that is never predicted; the stubs allow only "warn"
    scores: Any = precision_recall_fscore_support(
        label_ids, predicted, labels=present, zero_division=no_value
    )
    precision, recall, f1, _ = scores
    metrics = {
        "accuracy": float(accuracy_score(label_ids, predicted)),
        "precision": float(np.mean(precision)),
        "recall": float(np.mean(recall)),
        "f1": float(np.mean(f1)),
    }
    if len(labels) == 2 and len(np.unique(label_ids)) == 2:
        margin = logits[:, 1].astype(np.float64) - logits[:, 0].astype(np.float64)
        metrics["roc_auc"] = float(roc_auc_score(label_ids, margin))
    if len(labels) <= MOST_CLASSES_LISTED:
        metrics |= {f"f1_{labels[i]}": float(f1[at]) for at, i in enumerate(present)}
    return metrics


@dataclass(frozen=True)
class ClassScores:
    """How well one class is predicted."""

    label: str
    examples: int
    """Examples of the class."""
    precision: float
    """Share of the examples with this prediction that are of the class."""
    recall: float
    """Share of the examples of the class with this prediction."""
    f1: float
    """Harmonic mean of precision and recall."""


def confusion_counts(label_ids: Any, predicted: Any, labels: Sequence[str]) -> Any:
    """Count the examples by true and predicted class.

    Args:
        label_ids: True classes, array (examples,).
        predicted: Predicted classes, array (examples,).
        labels: Class names by id.

    Returns: Array (classes, classes); a row is a true class, a column a predicted one.
    """
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(label_ids, predicted, labels=range(len(labels)))


def class_scores(confusion: Any, labels: Sequence[str]) -> tuple[ClassScores, ...]:
    """Return the scores of each class; a share of no examples is 0.

    Args:
        confusion: Examples by true and predicted class, array (classes, classes).
        labels: Class names by id.
    """
    return _scores_of_counts(confusion.diagonal(), confusion.sum(1), confusion.sum(0), labels)


def label_scores(expected: Any, predicted: Any, labels: Sequence[str]) -> tuple[ClassScores, ...]:
    """Return the scores of each label where an example has any number of them.

    Args:
        expected: 1 or True where an example has a label, array (examples, labels).
        predicted: Where it is predicted, of the same shape.
        labels: Label names.
    """
    true, found = np.asarray(expected) > 0, np.asarray(predicted) > 0
    return _scores_of_counts((true & found).sum(0), true.sum(0), found.sum(0), labels)


def _scores_of_counts(
    correct: Any, true: Any, predicted: Any, labels: Sequence[str]
) -> tuple[ClassScores, ...]:
    return tuple(
        ClassScores(
            label,
            int(true[i]),
            *(
                float(part / whole) if whole else 0.0
                for part, whole in (
                    (correct[i], predicted[i]),
                    (correct[i], true[i]),
                    (2 * correct[i], true[i] + predicted[i]),
                )
            ),
        )
        for i, label in enumerate(labels)
    )


def token_metrics(label_ids: Any, logits: Any, labels: Sequence[str]) -> dict[str, float]:
    """Compare predicted tags with the true ones, word by word or entity by entity.

    Tags that mark entities are scored by seqeval: an entity is correct only if its kind and both
    ends are correct. Other tags (parts of speech) are scored word by word, as macro averages.
    Accuracy is the share of words with the correct tag.

    Args:
        label_ids: True tags, array (examples, tokens); -100 for tokens that do not count.
        logits: Scores, array (examples, tokens, tags).
        labels: Tag names by id.
    """
    counted = label_ids != NOT_COUNTED
    predicted = logits.argmax(-1)
    if not is_entity_scheme(labels):
        scores = classification_metrics(label_ids[counted], logits[counted], labels)
        scores.pop("roc_auc", None)
        return scores
    from seqeval.metrics import f1_score, precision_score, recall_score

    names: Any = np.array(seqeval_names(labels))
    true_tags: Any = [names[row[at]].tolist() for row, at in zip(label_ids, counted, strict=True)]
    tags: Any = [names[row[at]].tolist() for row, at in zip(predicted, counted, strict=True)]
    no_value: Any = 0  # for a kind that is never predicted; the stubs allow only "warn"
    scorers: Any = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
    return {
        "accuracy": float((predicted == label_ids)[counted].mean()),
    } | {
        name: float(scorer(true_tags, tags, zero_division=no_value))
        for name, scorer in scorers.items()
    }


def seqeval_names(labels: Sequence[str]) -> list[str]:
    """Return tags as seqeval reads them: with E and S for the L and U of BILOU.

    >>> seqeval_names(["O", "B-PER", "L-PER", "U-PER"])
    ['O', 'B-PER', 'E-PER', 'S-PER']
    """
    prefixes = {"L-": "E-", "U-": "S-"}
    return [prefixes.get(label[:2], label[:2]) + label[2:] for label in labels]


def rouge_metrics(targets: Sequence[str], generated: Sequence[str]) -> dict[str, float]:
    """Compare generated texts with their targets by overlapping words.

    Returns the F-measures of ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum, averaged over the examples.
    Words may be of any script: the tokenizer of rouge-score knows the letters a to z only.
    """
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ROUGE_NAMES
    scorer = RougeScorer(list(kinds), tokenizer=WordTokenizer())
    rows = [scorer.score(t, g) for t, g in zip(targets, generated, strict=True)]
    return {kind: float(np.mean([row[kind].fmeasure for row in rows])) for kind in kinds}


class WordTokenizer:
    """Tokenizer for rouge-score."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text in lower case; a Chinese or Japanese character is a word."""
        return _WORD.findall(text.lower())


def first_output(predictions: Any, _labels: Any = None) -> Any:
    """Return the logits of a model that also returns hidden states or a cache."""
    return predictions[0] if isinstance(predictions, (tuple, list)) else predictions

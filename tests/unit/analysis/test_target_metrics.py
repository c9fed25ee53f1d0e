import numpy as np
import pytest
from sklearn.metrics import f1_score

from lorakit.analysis.target_metrics import (
    best_thresholds,
    label_probabilities,
    multi_label_metric_names,
    multi_label_metrics,
    regression_metric_names,
    regression_metrics,
)

LABELS = ("a", "b", "c")


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    targets = (generator.random((40, 3)) < 0.3).astype(np.float32)
    logits = generator.normal(size=(40, 3)) + 1.5 * targets - 1
    return targets, logits.astype(np.float32)


def test_thresholds_are_the_best_of_all(scores):
    targets, logits = scores
    probabilities = label_probabilities(logits)

    for label, threshold in enumerate(best_thresholds(targets, logits)):
        got = f1_score(targets[:, label], probabilities[:, label] > threshold)
        tried = [
            f1_score(targets[:, label], probabilities[:, label] > each)
            for each in np.append(probabilities[:, label], 0.5)
        ]
        assert got == pytest.approx(max(tried))


def test_a_label_without_choice_keeps_one_half():
    logits = np.array([[3.0, -3.0, 1.0], [-3.0, -2.0, 2.0]])
    targets = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert best_thresholds(targets, logits) == (0.5, 0.5, 0.5)


def test_metrics_of_labels(scores):
    targets, logits = scores
    thresholds = best_thresholds(targets, logits)

    found = multi_label_metrics(targets, logits, LABELS, thresholds)

    assert set(found) == set(multi_label_metric_names(LABELS))
    assert found["macro_f1"] == pytest.approx(np.mean([found[f"f1_{name}"] for name in LABELS]))
    predicted = label_probabilities(logits) > np.array(thresholds)
    assert found["micro_f1"] == pytest.approx(f1_score(targets, predicted, average="micro"))
    assert found["macro_f1"] == pytest.approx(f1_score(targets, predicted, average="macro"))
    at_half = multi_label_metrics(targets, logits, LABELS)
    assert found["macro_f1"] >= at_half["macro_f1"]
    assert found["ranking_average_precision"] == at_half["ranking_average_precision"]
    perfect = multi_label_metrics(targets, 20 * targets - 10, LABELS)
    assert perfect["micro_f1"] == perfect["ranking_average_precision"] == 1.0


def test_metrics_of_numbers():
    found = regression_metrics(np.array([1.0, 2.0, 4.0]), np.array([[1.0], [3.0], [4.0]]), ("n",))
    assert found["rmse"] == pytest.approx((1 / 3) ** 0.5) and found["mae"] == pytest.approx(1 / 3)
    assert found["spearman"] == pytest.approx(1.0) and 0.9 < found["pearson"] < 1.0
    assert set(found) == set(regression_metric_names(("n",)))
    constant = regression_metrics(np.array([1.0, 2.0]), np.array([3.0, 3.0]), ("n",))
    assert constant["pearson"] == constant["spearman"] == 0.0


def test_several_numbers_are_averaged():
    targets = np.array([[1.0, 0.0], [2.0, 1.0], [3.0, 3.0]])
    found = regression_metrics(targets, targets + np.array([0.0, 1.0]), ("x", "y"))
    assert (found["mae_x"], found["mae_y"], found["mae"]) == (0.0, 1.0, 0.5)
    assert set(found) == set(regression_metric_names(("x", "y")))

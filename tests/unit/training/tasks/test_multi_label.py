import numpy as np

from fixtures.tasks import assert_loss_of_the_model
from lorakit.adapters.inference_settings import InferenceSettings

ROWS = [
    {"text": "good film", "label": ["good", "film"]},
    {"text": "bad film", "label": ["film"]},
    {"text": "cat", "label": []},
    {"text": "good cat", "label": ["good"]},
] * 4


def test_labels_are_encoded_in_the_order_of_their_names(prepare_texts):
    made = prepare_texts(ROWS)

    assert made.labels == ("film", "good")
    assert made.model.config.problem_type == "multi_label_classification"
    names = {tuple(row["label"]): row["label"] for row in made.splits.train}
    assert names
    expected = [[float(n in row["label"]) for n in made.labels] for row in made.splits.train]
    assert made.encoded.train["labels"][:] == expected
    assert made.encoded.settings["problem_type"] == "multi_label_classification"
    assert made.preview_examples(1)[0].note.startswith("labels: ")
    assert any("Each text has any of 2 labels" in note for note in made.encoded.notes)


def test_the_loss_is_that_of_the_model(prepare_texts, tmp_path):
    assert_loss_of_the_model(prepare_texts(ROWS), tmp_path)


def test_saved_thresholds_replace_those_that_would_be_chosen(prepare_texts):
    task = prepare_texts(ROWS).task
    targets = np.array([[1.0], [1.0], [0.0]])
    logits = np.array([[0.2], [-0.1], [-3.0]])

    assert task.measure(targets, logits, ("x",))["macro_f1"] == 1.0
    high = task.with_settings(InferenceSettings(thresholds=(0.9,)))
    assert high.measure(targets, logits, ("x",))["macro_f1"] == 0.0
    half = task.with_settings(InferenceSettings())
    assert 0.0 < half.measure(targets, logits, ("x",))["macro_f1"] < 1.0

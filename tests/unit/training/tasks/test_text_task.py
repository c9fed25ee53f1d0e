import pytest

from lorakit.errors import ConfigError

ROWS = [{"text": "good film", "label": ["x"]}, {"text": "bad film", "label": ["x", "y"]}] * 4


def test_a_loss_of_logits_cannot_be_smoothed(prepare_texts, tmp_path):
    made = prepare_texts(ROWS)
    with pytest.raises(ConfigError, match=r"^Only classes can be smoothed: got training.label_sm"):
        made.trainer(tmp_path, label_smoothing_factor=0.1)


def test_the_label_column_is_not_one_of_classes_where_it_has_numbers(prepare_texts):
    made = prepare_texts(ROWS)
    assert made.task.label_column(made.recipe) == "label"
    numbers = made.recipe.with_changes({"data.problem_type": "regression"}, "the test")
    assert made.task.label_column(numbers) is None


def test_only_classes_have_weights(prepare_texts):
    with pytest.raises(ConfigError, match=r"got data.class_weights for multi_label_classification"):
        prepare_texts(ROWS, class_weights={"x": 2})

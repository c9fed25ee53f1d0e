import pytest

from lorakit.errors import ConfigError
from lorakit.recipes.data_section import DataConfig
from lorakit.recipes.recipe import Recipe


def test_class_weights_have_texts_as_keys():
    assert dict(DataConfig(train="a.csv", class_weights={0: 2, "1": 0.5}).class_weights) == {
        "0": 2.0,
        "1": 0.5,
    }
    assert DataConfig(train="a.csv", class_weights="balanced").class_weights == "balanced"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"class_weights": {"a": 0}}, "expected weights above 0, not a: 0"),
        ({"class_weights": {"a": "x"}}, "expected weights above 0"),
        ({"class_weights": {"a": float("inf")}}, "expected weights above 0"),
        ({"class_weights": "even"}, "balanced"),
        ({"system_prompt": " "}, "expected a text; leave it out to keep"),
        ({"turns": "first"}, "turns"),
        ({"label_separator": ""}, "expected a text such as"),
        ({"validation": " "}, "expected a name, not only spaces"),
        ({"problem_type": "multi"}, "multi_label_classification"),
    ],
)
def test_bad_values_are_refused(values, said):
    with pytest.raises(ConfigError, match=said):
        DataConfig(train="a.csv", **values)


def test_targets_of_texts_are_for_text_classification():
    values = {"model": "m", "task": "CAUSAL_LM", "output": "o", "data": {"train": "a.csv"}}
    Recipe.check(values, "the test")
    values["data"] |= {"problem_type": "regression", "class_weights": "balanced"}
    with pytest.raises(
        ConfigError, match=r"data.problem_type and data.class_weights is for task S"
    ):
        Recipe.check(values, "the test")


@pytest.mark.parametrize(
    ("task", "values", "said"),
    [
        ("CAUSAL_LM", {"source_prefix": "sum: "}, "data.source_prefix is for task SEQ_2_SEQ_LM on"),
        ("TOKEN_CLS", {"max_target_length": 8}, "data.max_target_length is for task SEQ_2_SEQ_LM"),
        ("SEQ_2_SEQ_LM", {"text_pair": "b"}, "data.text_pair is for task SEQ_CLS only"),
        ("SEQ_CLS", {"format": "alpaca"}, "data.format is for task CAUSAL_LM or an `objective`"),
        (
            "CAUSAL_LM",
            {"text_pair": "b", "source_prefix": "a"},
            "data.text_pair is for task SEQ_CLS only; data.source_prefix is for task SEQ_2_SEQ_LM",
        ),
    ],
)
def test_keys_that_the_task_does_not_read_are_refused(task, values, said):
    values = {"model": "m", "task": task, "output": "o", "data": {"train": "a.csv", **values}}
    with pytest.raises(ConfigError, match=said):
        Recipe.check(values, "the test")


def test_the_format_of_preferences_is_read_by_reward_models():
    values = {"model": "m", "task": "SEQ_CLS", "output": "o", "objective": {"type": "reward"}}
    values["data"] = {"train": "a.csv", "format": "preference"}
    assert Recipe.check(values, "the test").data.format == "preference"


@pytest.mark.parametrize(
    ("values", "said"),
    [({"task": "SEQ_CLS"}, "data.turns and data.system_prompt is for task CAUSAL_LM only")],
)
def test_keys_of_chats_are_for_language_models(values, said):
    data = {"train": "a.csv", "turns": "last", "system_prompt": "Be brief."}
    with pytest.raises(ConfigError, match=said):
        Recipe.check({"model": "m", "output": "o", "data": data, **values}, "the test")

"""The `search:` and `study:` sections: one kind of distribution, and settings that fit together."""

import pytest

from lorakit.errors import ConfigError
from lorakit.recipes.search_sections import Distribution, SearchConfig, StudyConfig, TrialsConfig


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one of uniform, log_uniform"),
        ({"uniform": [0, 1], "choice": [1]}, "exactly one of uniform, log_uniform"),
        ({"choice": []}, "choice is an empty set"),
        ({"uniform": [1, 1]}, "uniform: expected a lower and a higher bound"),
        ({"int_uniform": [3, 2]}, "int_uniform: expected a lower and a higher bound"),
        ({"log_uniform": [0, 1]}, "log_uniform: expected bounds above 0"),
        ({"choice": [1], "times": 2}, "times belongs to same_as"),
        ({"choice": [1], "points": 3}, "points belongs to uniform"),
        ({"uniform": [0, 1], "points": 1}, "greater than or equal to 2"),
    ],
)
def test_a_distribution_is_of_one_kind_with_what_belongs_to_it(values, message):
    with pytest.raises(ConfigError, match=message):
        Distribution(**values)


def test_a_distribution_is_written_as_it_was_given():
    for values in (
        {"choice": [["q", "v"], "all-linear"]},
        {"log_uniform": [0.001, 0.1], "points": 4},
        {"same_as": "lora.r", "times": 2.0},
    ):
        assert Distribution(**values).model_dump() == values


def test_a_loss_is_minimized_and_other_metrics_are_maximized():
    assert TrialsConfig().is_minimized
    assert TrialsConfig(metric="perplexity").is_minimized
    assert not TrialsConfig(metric="accuracy").is_minimized
    assert TrialsConfig(metric="accuracy", mode="min").is_minimized
    assert TrialsConfig(metric="f1").metric == TrialsConfig(metric="eval_f1").metric == "eval_f1"


def test_nested_sections_of_a_space_become_dotted_keys():
    nested = {"lora": {"r": {"choice": [1, 2]}}, "training": {"seed": {"int_uniform": [0, 9]}}}
    dotted = {"lora.r": {"choice": [1, 2]}, "training.seed": {"int_uniform": [0, 9]}}
    assert SearchConfig(space=nested) == SearchConfig(space=dotted)
    assert list(SearchConfig(space=nested).space) == ["lora.r", "training.seed"]


def test_a_search_that_contradicts_itself_is_refused():
    with pytest.raises(ConfigError, match="leave the key out for the default space"):
        SearchConfig(space={})
    twice = {"lora.r": {"choice": [1]}, "lora": {"r": {"choice": [2]}}}
    with pytest.raises(ConfigError, match=r"space: lora\.r is given twice"):
        SearchConfig(space=twice)
    with pytest.raises(ConfigError, match="should be a finite number"):
        SearchConfig(space={"lora.lora_dropout": {"uniform": [float("nan"), 1]}})
    with pytest.raises(ConfigError, match=r"leave search\.trials out"):
        SearchConfig(algorithm="grid", trials=3)


@pytest.mark.parametrize(
    "values", [{"ranks": [1, 2, 1]}, {"seeds": [3, 3]}, {"target_modules": [["q"], ["q"]]}]
)
def test_a_study_repeats_no_cell(values):
    with pytest.raises(ConfigError, match="a value is repeated"):
        StudyConfig(**values)

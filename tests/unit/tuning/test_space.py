"""Search spaces: what is refused, what a grid tries, and the values of a trial."""

import pytest

from fixtures.trials import NARROW, WIDE
from lorakit.errors import ConfigError
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.search_sections import SearchConfig
from lorakit.tuning.space import Space, default_space, label_of


def space_of(**distributions):
    return Space(SearchConfig(space=distributions).space, "search.space")


@pytest.fixture
def recipe():
    return Recipe(model="m", task="CAUSAL_LM", data={"train": "x"}, output="unused")


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"space": {"lora.rank": {"choice": [1]}}}, r"unknown key 'lora.rank'. Did you mean 'r'"),
        ({"space": {"training.learning_rate": {"uniform": [-1, 1]}}}, "greater than 0"),
        ({"space": {"lora.r": {"uniform": [1, 8]}}}, "lora.r: got 3.59; input should be a valid"),
        ({"space": {"output": {"choice": ["a"]}}}, "'output' cannot be searched"),
        ({"space": {"search.trials": {"choice": [1]}}}, "it configures the search"),
        ({"space": {"lora.r": {"choice": [1, 1]}}}, "occurs twice in 1, 1"),
        (
            {"space": {"lora.lora_alpha": {"same_as": "lora.rr"}, "lora.r": {"choice": [1]}}},
            "got 'lora.rr', expected a field of the space. Did you mean 'lora.r'",
        ),
        (
            {"algorithm": "grid", "space": {"lora.lora_dropout": {"uniform": [0, 0.5]}}},
            "a grid needs a number of points between 0 and 0.5",
        ),
        ({"space": {"lora.use_rslora": {"choice": [1, True]}}}, "occurs twice in 1, True"),
        (
            {
                "space": {
                    "lora.lora_dropout": {"same_as": "lora.r", "times": 0.5},
                    "lora.r": {"choice": [1, 4]},
                }
            },
            "lora.lora_dropout: got 2.0; input should be less than 1",
        ),
        (
            {
                "space": {
                    "lora.lora_alpha": {"same_as": "lora.target_modules", "times": 2},
                    "lora.target_modules": {"choice": ["q", "v"]},
                }
            },
            "got 2 for 'lora.target_modules', whose values are not all numbers. Leave times out",
        ),
        ({"space": {"training": {"choice": [{"seed": 1}]}}}, "name a field of the section"),
        (
            {"space": {"training.metric_for_best_model": {"choice": ["eval_f1"]}}},
            "keeps its best epoch by the search's `metric`",
        ),
        (
            {"space": {"data.max_validation_rows": {"choice": [4, 8]}}},
            "compared on the same validation examples",
        ),
        ({"space": {"lora": {"choice": [{"r": 1}]}}}, "'lora' .* name a field of the section"),
        (
            {
                "space": {
                    "quantization": {"choice": [None, {"bits": 8}]},
                    "quantization.bits": {"choice": [4, 8]},
                }
            },
            "'quantization' .*: it contains 'quantization.bits', which is searched too",
        ),
    ],
)
def test_a_wrong_space_is_refused(recipe, search, message):
    settings = SearchConfig(**search)
    with pytest.raises(ConfigError, match=message):
        Space(settings.space, "search.space").check(recipe, settings)


def test_a_field_that_chooses_the_validation_examples_is_searched_only_if_these_are_named(recipe):
    space = space_of(**{"training.seed": {"choice": [1, 2]}})
    with pytest.raises(ConfigError, match=r"it also chooses the held-out validation examples"):
        space.check(recipe, SearchConfig())
    named = recipe.with_changes({"data.validation": "y.csv"}, "the test")
    space.check(named, SearchConfig())


@pytest.mark.parametrize(
    "key", ["objective.beta", "training.label_smoothing_factor", "data.class_weights"]
)
def test_trials_with_different_losses_are_not_compared_by_them(recipe, key):
    space = space_of(**{key: {"choice": [0.1, 0.2]}})
    with pytest.raises(ConfigError, match=rf"'{key}' .* cannot be compared by eval_loss. Set anot"):
        space.check(recipe, SearchConfig())
    with pytest.raises(ConfigError, match="cannot be compared by eval_perplexity"):
        space.check(recipe, SearchConfig(metric="perplexity"))
    if key.startswith("training"):
        space.check(recipe, SearchConfig(metric="accuracy"))


def test_trials_are_compared_on_the_same_tokens(recipe):
    space = space_of(**{"data.max_length": {"choice": [8, 64]}})
    with pytest.raises(ConfigError, match="it chooses the tokens that eval_loss is measured on"):
        space.check(recipe, SearchConfig())
    space.check(recipe.with_changes({"task": "SEQ_CLS"}, "the test"), SearchConfig())


def test_all_problems_are_reported_together(recipe):
    space = space_of(output={"choice": ["a"]}, task={"choice": ["SEQ_CLS"]})
    with pytest.raises(ConfigError, match=r"2 problems in search.space: 'output' .*\n  'task' "):
        space.check(recipe, SearchConfig())
    both_bounds = space_of(**{"training.learning_rat": {"log_uniform": [1e-4, 1e-1]}})
    with pytest.raises(ConfigError, match=r"^Cannot search search.space: unknown key"):
        both_bounds.check(recipe, SearchConfig())


def test_a_grid_tries_points_between_its_bounds():
    space = space_of(
        **{
            "training.learning_rate": {"log_uniform": [1e-4, 1e-2], "points": 3},
            "lora.lora_dropout": {"uniform": [0, 0.5], "points": 2},
            "lora.r": {"int_uniform": [1, 3], "points": 9},
            "lora.lora_alpha": {"same_as": "lora.r"},
        }
    )
    grid = {key: values["grid_search"] for key, values in space.for_ray("grid").items()}
    assert grid["training.learning_rate"] == pytest.approx([1e-4, 1e-3, 1e-2])
    assert grid["lora.lora_dropout"] == [0, 0.5]
    assert grid["lora.r"] == [1, 2, 3]
    assert "lora.lora_alpha" not in grid
    assert space.grid_size == 3 * 2 * 3


def test_an_integer_range_includes_both_bounds():
    integers = space_of(**{"lora.r": {"int_uniform": [1, 2]}}).for_ray("random")["lora.r"]
    assert {integers.sample() for _ in range(64)} == {1, 2}


def test_a_trial_gets_lists_and_copies_back():
    space = space_of(
        **{
            "lora.lora_alpha": {"same_as": "lora.r", "times": 2},
            "lora.r": {"choice": [2, 4]},
            "lora.target_modules": {"choice": [["q", "v"], "all-linear"]},
        }
    )
    values = space.trial_values({"lora.r": 4, "lora.target_modules": "q, v"})
    assert values == {"lora.lora_alpha": 8, "lora.r": 4, "lora.target_modules": ["q", "v"]}
    assert tuple(values) == space.keys
    assert label_of({"q": 2, "v": [1]}) == "q=2, v=1"


def test_the_default_space_is_valid_for_every_recipe(recipe):
    space = Space(default_space([NARROW, WIDE]), "the default")
    space.check(recipe, SearchConfig())
    assert space.distributions["lora.target_modules"].choice == (["q"], "all-linear")
    assert space.distributions["lora.lora_alpha"].same_as == "lora.r"

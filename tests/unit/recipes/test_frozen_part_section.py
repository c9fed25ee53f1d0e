"""The `frozen_part:` section: its defaults, and what it refuses."""

import pytest

from lorakit.errors import ConfigError
from lorakit.recipes import Recipe
from lorakit.recipes.frozen_part_section import FrozenPartConfig


def test_a_recipe_without_the_section_keeps_four_gigabytes_in_the_user_s_cache():
    values = {"model": "m", "task": "SEQ_CLS", "data": {"train": "a.csv"}, "output": "runs/a"}
    found = Recipe.check(values, "the recipe").frozen_part
    assert found == FrozenPartConfig()
    assert (found.cache_bytes, found.cache_directory, found.dropout) == (4 * 10**9, None, False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cache_bytes": -1}, "cache_bytes"),
        ({"cache_bytes": "much"}, "cache_bytes"),
        ({"budget": 1}, "budget"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(ConfigError, match=message):
        FrozenPartConfig(**values)

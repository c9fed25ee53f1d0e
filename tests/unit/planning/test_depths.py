"""The cost of adapting all layers, the upper half and the upper quarter."""

import pytest

from lorakit.planning import plan
from lorakit.planning.depths import depths


def depths_of(recipe):
    return depths(recipe, plan(recipe))


def test_times_are_counted_products_and_memory_is_planned(recipe, config_dir):
    model = config_dir(num_hidden_layers=4, hidden_size=64, intermediate_size=128)
    found = depths_of(recipe(model=model))
    assert [one.layers for one in found.values()] == [4, 2, 1]
    block, head = 4 * 64 * 64 + 3 * 64 * 128, 64 * 64
    every = 2 * (4 * block + head)
    half, quarter = found["upper half"], found["upper quarter"]
    assert found["all"].first_epoch == found["all"].later_epoch == 1
    assert half.first_epoch == pytest.approx((6 * block + 2 * head) / every)
    assert half.later_epoch == pytest.approx((4 * block + 2 * head) / every)
    assert quarter.later_epoch == pytest.approx((2 * block + 2 * head) / every)
    needed = [one.needed_bytes for one in found.values()]
    assert needed == sorted(needed, reverse=True)
    assert found["all"].cache_bytes == 0


@pytest.mark.parametrize(
    "changes", [{"frozen_part.cache_bytes": 0}, {"training.gradient_checkpointing": True}]
)
def test_recipes_that_keep_nothing_have_none(recipe, changes):
    assert depths_of(recipe(**changes)) == {}


def test_what_is_kept_has_the_tokens_of_an_epoch(recipe):
    made = recipe()
    planned = plan(made)
    found = depths(made, planned)
    assert list(found) == ["all", "upper half"], "a quarter of two layers is the same one"
    assert found["upper half"].cache_bytes == round(planned.tokens / planned.epochs) * 32 * 4

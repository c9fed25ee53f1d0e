"""The grid of a study: statistics of a cell, and the values of each run."""

import math

import pytest

from fixtures.trials import NARROW, WIDE
from lorakit.tuning.cells import Cell, CellSpace
from lorakit.tuning.study import grid_cells


def test_a_cell_has_the_mean_and_spread_of_its_seeds():
    cell = Cell(8, 8, WIDE, (0.90, 0.92, 0.94))
    assert cell.parameters == 8 * 350
    assert (cell.mean, cell.deviation) == pytest.approx((0.92, 0.02))
    assert cell.standard_error == pytest.approx(0.02 / math.sqrt(3))
    one, none = Cell(1, 1, WIDE, (0.5,)), Cell(1, 1, WIDE, (), failed=3)
    assert (one.mean, one.deviation, one.standard_error) == (0.5, 0, 0)
    assert math.isnan(none.mean) and none.standard_error == 0


def test_the_grid_has_each_cell_with_each_seed_once():
    cells = tuple(grid_cells([1, 8], [NARROW, WIDE], equal_budget=False))
    space = CellSpace(cells, (5, 6, 7), scaling=2.0)
    runs = space.for_ray("grid")["run"]["grid_search"]
    trial_values = [space.trial_values({"run": run}) for run in runs]
    assert (
        len({tuple(map(str, values.values())) for values in trial_values})
        == len(trial_values)
        == 12
    )
    assert all(values["lora.lora_alpha"] == 2 * values["lora.r"] for values in trial_values)
    assert [space.cell_of(values) for values in trial_values] == [n // 3 for n in range(12)]


def test_values_that_no_cell_has_are_an_error():
    space = CellSpace((Cell(1, 1, NARROW),), (5,), scaling=2.0)
    assert space.cell_of({"lora.r": 1, "lora.target_modules": ["q"]}) == 0
    with pytest.raises(LookupError):
        space.cell_of({"lora.r": 2, "lora.target_modules": ["q"]})


def test_a_table_has_each_rank_and_set_once():
    cells = tuple(grid_cells([1, 8], [NARROW, WIDE], equal_budget=False))
    distributions = CellSpace(cells, (5, 6), scaling=2.0).distributions
    assert distributions["lora.r"].choice == (1, 8)
    assert distributions["lora.target_modules"].choice == ("narrow", "wide")
    assert distributions["lora.lora_alpha"].times == 2
    assert distributions["training.seed"].choice == (5, 6)

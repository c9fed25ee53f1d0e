"""The table and the recommendation of a study's report."""

import pytest

from fixtures.trials import NARROW, WIDE
from lorakit.recipes.search_sections import StudyConfig
from lorakit.tuning.cells import Cell
from lorakit.tuning.study_report import cell_text, recommendation, table_lines

BEST = Cell(8, 8, WIDE, (0.9, 0.9, 0.96))
SMALL = Cell(1, 1, NARROW, (0.91, 0.91, 0.91))


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (SMALL, "0.9100 ± 0.0000"),
        (Cell(1, 1, NARROW, (0.5,)), "0.5000"),
        (Cell(1, 1, NARROW, (0.5,), failed=2), "0.5000 (2 failed)"),
        (Cell(1, 1, NARROW, (), failed=3), "failed"),
    ],
)
def test_a_cell_in_words(cell, text):
    assert cell_text(cell, with_rank=False) == text


def test_columns_are_ranks_or_budgets():
    cells = [SMALL, Cell(8, 8, NARROW), Cell(1, 1, WIDE, (0.5,)), BEST]
    assert table_lines(cells, StudyConfig()) == [
        "| modules | r=1 | r=8 |",
        "|---|--:|--:|",
        "| narrow | 0.9100 ± 0.0000 | failed |",
        "| wide | 0.5000 | 0.9200 ± 0.0346 |",
    ]
    cells = [Cell(2, 7, NARROW, (0.5,)), Cell(2, 2, WIDE, (0.6,))]
    assert table_lines(cells, StudyConfig(budget="equal")) == [
        "| modules | 700 parameters |",
        "|---|--:|",
        "| narrow | 0.5000 (r=7) |",
        "| wide | 0.6000 (r=2) |",
    ]


def test_the_recommendation_states_its_rule():
    def text(recommended, **settings):
        return recommendation([SMALL, BEST], BEST, recommended, StudyConfig(**settings), "accuracy")

    assert text(SMALL) == (
        "**Smallest sufficient: r=1 on narrow** (100 parameters in the factors). Its mean, 0.9100, "
        "is within one standard error (0.0200) of the best one, 0.9200 by r=8 on wide with 2,800 "
        "parameters; of all such cells, it has the fewest parameters. It costs 0.0100 of accuracy."
    )
    depths = text(SMALL, layers=("all", "upper half"))
    assert "of all such cells, it has the fewest layers, and then parameters." in depths
    assert "nothing smaller is within one standard error (0.0200) of it" in text(BEST)
    assert "With one seed, chance cannot be ruled out" in text(BEST, seeds=(1,))


def test_a_cell_of_which_one_run_is_left_is_not_said_to_suffice():
    left = Cell(8, 8, WIDE, (0.95,), failed=2)
    said = recommendation([SMALL, left], left, left, StudyConfig(), "accuracy")
    assert said == (
        "**Best: r=8 on wide** (2,800 parameters in the factors), accuracy 0.9500. Only one of its "
        "3 runs has not failed, so chance cannot be ruled out; --resume starts the failed ones "
        "again."
    )

"""Each type of objective has its class."""

import pytest

from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.training.objectives import objective_for
from lorakit.training.objectives.direct import DPO, IPO
from lorakit.training.objectives.odds_ratio import ORPO
from lorakit.training.objectives.votes import KTO


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"type": "dpo", "loss": "hinge"}, DPO(0.1, 0.0, "hinge")),
        ({"type": "ipo", "beta": 0.5, "sft_weight": 1}, IPO(0.5, 1.0)),
        ({"type": "orpo"}, ORPO(0.1)),
        ({"type": "kto", "desirable_weight": 2}, KTO(0.1, 2.0, 1.0)),
    ],
)
def test_objectives(values, expected):
    assert objective_for(ObjectiveConfig(**values)) == expected

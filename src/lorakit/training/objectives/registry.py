"""Make the objective of a recipe's `objective:` section."""

from __future__ import annotations

from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.training.objectives.direct import DPO, IPO
from lorakit.training.objectives.objective import Objective
from lorakit.training.objectives.odds_ratio import ORPO
from lorakit.training.objectives.votes import KTO


def objective_for(config: ObjectiveConfig) -> Objective:
    """Return the objective of a language model that a section describes."""
    match config.type:
        case "dpo":
            return DPO(config.beta, config.sft_weight, config.loss, config.length_normalized)
        case "ipo":
            return IPO(config.beta, config.sft_weight)
        case "orpo":
            return ORPO(config.beta)
        case _:
            return KTO(config.beta, config.desirable_weight, config.undesirable_weight)

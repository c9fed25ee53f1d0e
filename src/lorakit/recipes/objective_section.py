"""The `objective:` section of a recipe: what preferences are trained with."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from lorakit.config import StrictConfig, TaskType

ObjectiveType = Literal["dpo", "ipo", "orpo", "kto", "reward"]

_READ_BY: dict[str, tuple[ObjectiveType, ...]] = {
    "beta": ("dpo", "ipo", "orpo", "kto"),
    "loss": ("dpo",),
    "length_normalized": ("dpo",),
    "sft_weight": ("dpo", "ipo"),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
    "center_rewards": ("reward",),
}
"""The objectives that read each key; any other value than the default is an error elsewhere."""


class ObjectiveConfig(StrictConfig):
    """What a model learns from preferences, instead of from examples of the right answer.

    The reference of dpo, ipo and kto is the same base with the adapter off.
    """

    type: ObjectiveType
    """CAUSAL_LM learns by `dpo` (arXiv:2305.18290), `ipo` (arXiv:2310.12036) or `orpo`
    (arXiv:2403.07691) from pairs of a chosen and a rejected answer, and by `kto` (arXiv:2402.01306)
    from single answers with a vote. SEQ_CLS becomes a `reward` model, which gives the chosen answer
    the higher score."""

    beta: float = Field(0.1, gt=0)
    """How close to the reference the model stays: a larger value keeps it closer. For `orpo` the
    weight of the odds ratio beside the likelihood of the chosen answer."""

    loss: Literal["sigmoid", "hinge"] = "sigmoid"
    """Loss of a margin, for `dpo`."""

    length_normalized: bool = False
    """Whether `dpo` compares log-probabilities per token instead of those of whole answers."""

    sft_weight: float = Field(0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen answer, added by `dpo` and `ipo`."""

    desirable_weight: float = Field(1.0, ge=0)
    """Weight of the answers with a good vote, for `kto`."""

    undesirable_weight: float = Field(1.0, ge=0)
    """Weight of the answers with a bad vote, for `kto`."""

    center_rewards: float = Field(0.0, ge=0)
    """Weight of the squared sum of a pair's scores, which keeps them around zero, for `reward`."""

    @model_validator(mode="after")
    def _require_read(self) -> Self:
        for key, objectives in _READ_BY.items():
            is_default = getattr(self, key) == type(self).model_fields[key].default
            if self.type not in objectives and not is_default:
                raise ValueError(
                    f"{key} belongs to {' and '.join(objectives)}, but type is {self.type}; "
                    f"leave {key} out"
                )
        return self

    @property
    def task(self) -> TaskType:
        """The task that the objective trains."""
        return TaskType.SEQ_CLS if self.type == "reward" else TaskType.CAUSAL_LM

    @property
    def reads_votes(self) -> bool:
        """Whether examples are single answers with a vote, rather than pairs of answers."""
        return self.type == "kto"

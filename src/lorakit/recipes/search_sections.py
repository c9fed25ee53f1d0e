"""The `search:` and `study:` sections of a recipe: what is tried, how, and with what."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_serializer, model_validator

from lorakit.config import Rank, StrictConfig

_KINDS = ("uniform", "log_uniform", "int_uniform", "choice", "same_as")


class Distribution(StrictConfig):
    """Where the values of one recipe field come from; exactly one of its kinds is given."""

    uniform: tuple[float, float] | None = None
    """Numbers between two bounds, all equally likely."""

    log_uniform: tuple[float, float] | None = None
    """Likewise, with equally likely orders of magnitude; both bounds are above 0."""

    int_uniform: tuple[int, int] | None = None
    """Whole numbers between two bounds, both included."""

    choice: tuple[Any, ...] | None = None
    """A list of values of any type."""

    same_as: str | None = None
    """The value of another field of the space, `times` times."""

    times: float = Field(1.0, gt=0)
    """What the value of `same_as` is multiplied by."""

    points: int | None = Field(None, ge=2)
    """How many values between its bounds a grid tries."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of {', '.join(_KINDS)}")
        if self.choice is not None and not self.choice:
            raise ValueError("choice is an empty set; expected at least one value")
        bounds = self.bounds
        if bounds is not None and bounds[0] >= bounds[1]:
            raise ValueError(f"{given[0]}: expected a lower and a higher bound")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError("log_uniform: expected bounds above 0")
        if self.times != 1 and self.same_as is None:
            raise ValueError("times belongs to same_as")
        if self.points is not None and bounds is None:
            raise ValueError("points belongs to uniform, log_uniform and int_uniform")
        return self

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Return the lowest and the highest value, or None for a choice or a copy."""
        return self.uniform or self.log_uniform or self.int_uniform

    @model_serializer
    def _given(self) -> dict[str, Any]:
        """Write what was given and nothing else."""
        values = {kind: getattr(self, kind) for kind in (*_KINDS, "points")}
        given = {key: _plain(value) for key, value in values.items() if value is not None}
        return given | ({"times": self.times} if self.times != 1 else {})


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value


class AshaConfig(StrictConfig):
    """Asynchronous successive halving: after some epochs only the best go on.

    Source: Li et al. 2020, arXiv:1810.05934.
    """

    grace_period: int = Field(1, ge=1)
    """Epochs that every trial may run."""

    reduction_factor: float = Field(3.0, gt=1)
    """At each rung one trial in so many goes on, and the next rung is so many times as high."""


class TrialsConfig(StrictConfig):
    """What searches and studies have in common: how each trial is run and judged."""

    metric: str = "eval_loss"
    """What trials are compared by: a metric of the evaluation, with "eval_" before it or not."""

    mode: Literal["min", "max"] | None = None
    """Whether a low or a high value is good; None takes "min" for a loss, "max" for the rest."""

    max_epochs: int | None = Field(None, ge=1)
    """Epochs of a trial that runs to its end; None takes training.num_train_epochs."""

    sample_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training rows that a trial sees; it is evaluated on all validation rows."""

    cpus_per_trial: float = Field(1.0, gt=0)
    """CPUs that a trial takes."""

    gpus_per_trial: float | None = Field(None, ge=0)
    """Fractions share a GPU; None takes one where the machines have any."""

    max_concurrent: int | None = Field(None, ge=1)
    """Most trials at once; None takes as many as there is room for."""

    @field_validator("metric")
    @classmethod
    def _metrics_are_of_the_evaluation(cls, value: str) -> str:
        return value if value.startswith("eval_") else f"eval_{value}"

    @property
    def is_minimized(self) -> bool:
        """Return whether a lower metric is better."""
        if self.mode is not None:
            return self.mode == "min"
        return self.metric.endswith(("loss", "perplexity"))


class SearchConfig(TrialsConfig):
    """What `lorakit tune` tries, and how it chooses."""

    space: dict[str, Distribution] | None = None
    """Distributions by recipe key, such as `lora.r`. None takes learning rate, rank, alpha (as
    the rank), dropout, and sets of the model's own matrices."""

    algorithm: Literal["random", "grid", "tpe"] = "random"
    """"tpe" learns from finished trials what to try next (Optuna's)."""

    trials: int | None = Field(None, ge=1)
    """How many; None takes 8. A grid has its own number."""

    asha: AshaConfig | None = AshaConfig()
    """Stop trials early that are behind; None lets every trial run to its end."""

    @field_validator("space", mode="before")
    @classmethod
    def _sections_are_dotted_keys(cls, value: Any) -> Any:
        return _flat(value) if isinstance(value, Mapping) else value

    @field_validator("space")
    @classmethod
    def _space_is_not_empty(cls, value: Any) -> Any:
        if value is not None and not value:
            raise ValueError("an empty set; leave the key out for the default space")
        return value

    @model_validator(mode="after")
    def _a_grid_knows_its_number(self) -> Self:
        if self.algorithm == "grid" and self.trials is not None:
            raise ValueError("a grid tries every combination once; leave search.trials out")
        return self


def _flat(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into dotted keys, down to what looks like a distribution."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        parts = list(value.values()) if isinstance(value, Mapping) else []
        is_section = bool(parts) and all(isinstance(part, Mapping) for part in parts)
        flat |= _flat(value, f"{prefix}{key}.") if is_section else {f"{prefix}{key}": value}
    return flat


TargetModules = str | tuple[str, ...]


class StudyConfig(TrialsConfig):
    """The grid that `lorakit study` trains: ranks, target modules and seeds.

    Source: Hu et al. 2021, arXiv:2106.09685, tables 5 and 6.
    """

    ranks: Annotated[tuple[Rank, ...], Field(min_length=1)] = (1, 2, 4, 8, 64)
    """Ranks; at an equal budget those of the widest set of modules."""

    target_modules: Annotated[tuple[TargetModules, ...], Field(min_length=1)] | None = None
    """Sets of modules, each as lora.target_modules takes it; None takes sets of the model's own
    matrices."""

    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2, 3)
    """Each cell of the grid is trained with every seed."""

    budget: Literal["unequal", "equal"] = "unequal"
    """"equal": in each column all sets train the same number of factors' parameters, so that a
    narrower set gets a higher rank."""

    @field_validator("ranks", "seeds", "target_modules")
    @classmethod
    def _once_each(cls, value: Any) -> Any:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("a value stands twice; delete one")
        return value

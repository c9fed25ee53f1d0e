"""The `search:` and `study:` sections of a recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, FiniteFloat, field_validator, model_serializer, model_validator

from lorakit.config import Rank, StrictConfig

MOST_TOGETHER = 64
"""Largest number of trials in one process; beyond it a pass gains nothing."""

_KINDS = ("uniform", "log_uniform", "int_uniform", "choice", "same_as")


class Distribution(StrictConfig):
    """Values to try for one recipe field; exactly one kind must be given."""

    uniform: tuple[FiniteFloat, FiniteFloat] | None = None
    """Lower and upper bound of a uniform distribution."""

    log_uniform: tuple[FiniteFloat, FiniteFloat] | None = None
    """Lower and upper bound, both above 0, of a distribution that is uniform in the logarithm."""

    int_uniform: tuple[int, int] | None = None
    """Smallest and largest of equally likely integers."""

    choice: tuple[Any, ...] | None = None
    """A list of equally likely values of any type."""

    same_as: str | None = None
    """Key of another field of the space whose value, multiplied by `times`, is used."""

    times: FiniteFloat = Field(1.0, gt=0)
    """Factor on the value of `same_as`."""

    points: int | None = Field(None, ge=2)
    """Number of values between the bounds that a grid tries."""

    @model_validator(mode="after")
    def _require_one_kind(self) -> Self:
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
        """The lowest and highest value; None for `choice` and `same_as`."""
        return self.uniform or self.log_uniform or self.int_uniform

    @model_serializer
    def _given_fields(self) -> dict[str, Any]:
        """Serialize only the fields that were given."""
        values = {kind: getattr(self, kind) for kind in (*_KINDS, "points")}
        given = {key: _plain(value) for key, value in values.items() if value is not None}
        return given | ({"times": self.times} if self.times != 1 else {})


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in cast(Sequence[Any], value)]
    return value


class AshaConfig(StrictConfig):
    """Asynchronous successive halving: after some epochs only the best trials continue.

    Source: Li et al. 2020, arXiv:1810.05934.
    """

    grace_period: int = Field(1, ge=1)
    """Number of epochs before a trial may be stopped."""

    reduction_factor: float = Field(3.0, gt=1)
    """At each rung one trial in this many continues; the next rung comes this many times later."""


class TrialsConfig(StrictConfig):
    """Settings that searches and studies share: how each trial is run and compared."""

    metric: str = "eval_loss"
    """Evaluation metric that trials are compared by, with or without the prefix "eval_"."""

    mode: Literal["min", "max"] | None = None
    """Whether low or high values are better; None is "min" for a loss, "max" for other metrics."""

    max_epochs: int | None = Field(None, ge=1)
    """Maximum number of epochs of a trial; None takes training.num_train_epochs."""

    sample_fraction: float = Field(1.0, gt=0, le=1)
    """Share of the training examples used by a trial; evaluation uses all validation examples."""

    cpus_per_trial: float = Field(1.0, gt=0)
    """CPUs that a trial takes."""

    gpus_per_trial: float | None = Field(None, ge=0)
    """GPUs per trial, fractions to share one; None is one if the machines have any."""

    max_concurrent: int | None = Field(None, ge=1)
    """Maximum number of concurrent trials; None is as many as the machines have room for."""

    together: Literal["auto"] | Annotated[int, Field(ge=1, le=MOST_TOGETHER)] = 1
    """Number of trials that train in one process, with one pass for all in each step. There is one
    process for each GPU; without one, as many as have room for cpus_per_trial. "auto" measures what
    is quickest and fits; 1 gives each trial its own process."""

    @field_validator("metric")
    @classmethod
    def _with_prefix(cls, value: str) -> str:
        return value if value.startswith("eval_") else f"eval_{value}"

    @property
    def is_minimized(self) -> bool:
        """Whether a lower metric is better."""
        if self.mode is not None:
            return self.mode == "min"
        return lower_is_better(self.metric)


def lower_is_better(metric: str) -> bool:
    """Return whether a lower value of a metric is better: losses, errors, rejected answers.

    >>> lower_is_better("eval_loss"), lower_is_better("rmse"), lower_is_better("f1_loss")
    (True, True, False)
    >>> lower_is_better("kl"), lower_is_better("eval_rejected_reward"), lower_is_better("margin")
    (True, True, False)
    """
    name = metric.removeprefix("eval_")
    if name in ("kl", "rejected_reward", "rejected_log_prob"):
        return True
    is_error = name.partition("_")[0] in ("rmse", "mae")
    return is_error or (name.endswith(("loss", "perplexity")) and not name.startswith("f1_"))


class SearchConfig(TrialsConfig):
    """Search space and method of `lorakit tune`."""

    space: dict[str, Distribution] | None = None
    """Distributions by recipe key, such as `lora.r`. None searches learning rate, rank (with alpha
    equal to it), dropout, and sets of the model's matrices."""

    algorithm: Literal["random", "grid", "tpe"] = "random"
    """Search algorithm; "tpe" is Optuna's, which learns from finished trials."""

    trials: int | None = Field(None, ge=1)
    """Number of trials; None is 8. Not for a grid, which tries every combination once."""

    asha: AshaConfig | None = AshaConfig()
    """Early stopping of trials that are behind; None runs every trial to its end."""

    @field_validator("space", mode="before")
    @classmethod
    def _with_dotted_keys(cls, value: Any) -> Any:
        return _flatten(cast(Mapping[Any, Any], value)) if isinstance(value, Mapping) else value

    @field_validator("space")
    @classmethod
    def _require_nonempty(cls, value: Any) -> Any:
        if value is not None and not value:
            raise ValueError("an empty set; leave the key out for the default space")
        return value

    @model_validator(mode="after")
    def _reject_trials_of_a_grid(self) -> Self:
        if self.algorithm == "grid" and self.trials is not None:
            raise ValueError("a grid tries every combination once; leave search.trials out")
        return self


def _flatten(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into dotted keys; distributions stay mappings."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        section: Mapping[Any, Any] = (
            cast(Mapping[Any, Any], value) if isinstance(value, Mapping) else {}
        )
        is_section = bool(section) and all(isinstance(v, Mapping) for v in section.values())
        name = f"{prefix}{key}"
        found: dict[str, Any] = _flatten(section, f"{name}.") if is_section else {name: value}
        if twice := sorted(flat.keys() & found.keys()):
            raise ValueError(f"{twice[0]} is given twice; delete one")
        flat |= found
    return flat


TargetModules = str | tuple[str, ...]
Depth = Literal["all", "upper half", "upper quarter"]
"""Which layers of a model are adapted."""


class StudyConfig(TrialsConfig):
    """The grid of `lorakit study`: ranks, target modules, layers and seeds.

    Source: Hu et al. 2021, arXiv:2106.09685, tables 5 and 6.
    """

    ranks: Annotated[tuple[Rank, ...], Field(min_length=1)] = (1, 2, 4, 8, 64)
    """Ranks; with an equal budget, the ranks of the widest set of modules."""

    target_modules: Annotated[tuple[TargetModules, ...], Field(min_length=1)] | None = None
    """Sets of modules, each a value of lora.target_modules; None takes sets of the model's
    matrices."""

    layers: Annotated[tuple[Depth, ...], Field(min_length=1)] | None = None
    """Layers to adapt, such as [all, upper half, upper quarter]; None takes the recipe's."""

    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (1, 2, 3)
    """Seeds; each cell of the grid is trained with all of them."""

    budget: Literal["unequal", "equal"] = "unequal"
    """"equal": all sets in a column train the same number of parameters in their factors, so a
    narrower set gets a higher rank."""

    @field_validator("ranks", "seeds", "target_modules", "layers")
    @classmethod
    def _require_distinct(cls, value: Any) -> Any:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("a value is repeated; delete one")
        return value

"""A search space: recipe fields that vary, their distributions, and the values of trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.errors import ConfigError, did_you_mean
from lorakit.recipes.search_sections import Distribution

if TYPE_CHECKING:
    from lorakit.recipes.recipe import Recipe
    from lorakit.tuning.target_sets import TargetSet

_NOT_SEARCHED = {
    "output": "each trial has its own directory",
    "task": "other tasks have other metrics",
    "training.num_train_epochs": "set `max_epochs` in the search section",
    "training.max_steps": "set `max_epochs` in the search section",
    "training.eval_strategy": "trials are evaluated after every epoch",
    "training.eval_on_start": "trials are evaluated after every epoch",
    "training.eval_steps": "trials are evaluated after every epoch",
    "training.save_strategy": "trials are saved after every epoch",
    "training.save_steps": "trials are saved after every epoch",
}


@dataclass(frozen=True)
class Space:
    """Distributions by recipe key."""

    distributions: Mapping[str, Distribution]
    where: str
    """Name of its source in an error."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Recipe keys, in the given order."""
        return tuple(self.distributions)

    def check(self, recipe: Recipe, algorithm: str) -> None:
        """Refuse a space with values that are invalid in the recipe.

        Raises:
            ConfigError: Lists every problem: unknown fields, wrong values, copies of missing
                fields, ranges without points in a grid.
        """
        problems: list[str] = []
        for key, distribution in self.distributions.items():
            reason = _NOT_SEARCHED.get(key)
            if reason is None and key.split(".")[0] in ("search", "study"):
                reason = "it configures the search"
            if reason is not None:
                problems.append(f"'{key}' cannot be searched: {reason}.")
            elif distribution.same_as is not None:
                problems += self._copy_problems(key, distribution.same_as)
            else:
                problems += _value_problems(recipe, key, distribution, self.where)
            if algorithm == "grid" and distribution.bounds and distribution.points is None:
                problems.append(
                    f"{key}: a grid needs a number of points between {_bounds_text(distribution)}. "
                    "Add `points: 4`, or use choice."
                )
        if problems:
            different = list(dict.fromkeys(problems))
            count = f"{len(different)} problems in " if len(different) > 1 else ""
            raise ConfigError(f"Cannot search {count}{self.where}: " + "\n  ".join(different))

    def _copy_problems(self, key: str, source: str) -> list[str]:
        there = self.distributions.get(source)
        if there is not None and there.same_as is None:
            return []
        known = [name for name, other in self.distributions.items() if other.same_as is None]
        hint = did_you_mean(source, known) or f" Known: {', '.join(known)}."
        return [f"{key}: same_as: got '{source}', expected a field of the space.{hint}"]

    def for_ray(self, algorithm: str) -> dict[str, Any]:
        """Return the space for Ray Tune, without copied fields.

        Lists are replaced by labels, because samplers support numbers and strings only.
        """
        from ray import tune

        space: dict[str, Any] = {}
        for key, distribution in self.distributions.items():
            if distribution.same_as is not None:
                continue
            if algorithm == "grid":
                space[key] = tune.grid_search(_grid_values(distribution))
            elif distribution.choice is not None:
                space[key] = tune.choice([label_of(value) for value in distribution.choice])
            elif distribution.uniform is not None:
                space[key] = tune.uniform(*distribution.uniform)
            elif distribution.log_uniform is not None:
                space[key] = tune.loguniform(*distribution.log_uniform)
            elif distribution.int_uniform is not None:
                low, high = distribution.int_uniform
                space[key] = tune.randint(low, high + 1)
        return space

    def trial_values(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of a trial by recipe key, including lists and copies.

        Args:
            sample: Sample of Ray Tune.
        """
        values: dict[str, Any] = {}
        for key, distribution in self.distributions.items():
            if distribution.same_as is None:
                values[key] = _from_label(distribution, sample[key])
        for key, distribution in self.distributions.items():
            if distribution.same_as is not None:
                values[key] = _times(values[distribution.same_as], distribution.times)
        return {key: values[key] for key in self.distributions}

    @property
    def grid_size(self) -> int:
        """Number of combinations of a grid."""
        free = [d for d in self.distributions.values() if d.same_as is None]
        return math.prod(len(_grid_values(distribution)) for distribution in free)


def default_space(target_sets: list[TargetSet]) -> dict[str, Distribution]:
    """Return the search space of a recipe that names none.

    Args:
        target_sets: Module sets of the model.
    """
    modules = tuple(_as_list(target_set.target_modules) for target_set in target_sets)
    return {
        "training.learning_rate": Distribution(log_uniform=(1e-4, 1e-1)),
        "lora.r": Distribution(choice=(2, 4, 6, 8, 10, 16)),
        "lora.lora_alpha": Distribution(same_as="lora.r"),
        "lora.target_modules": Distribution(choice=modules),
        "lora.lora_dropout": Distribution(uniform=(0.1, 0.5)),
    }


def label_of(value: Any) -> Any:
    """Return a value for tables and samplers: lists as text, numbers and strings unchanged.

    >>> label_of(["q_proj", "v_proj"])
    'q_proj, v_proj'
    >>> label_of(8)
    8
    """
    if isinstance(value, (list, tuple)):
        return ", ".join(str(label_of(part)) for part in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={label_of(part)}" for key, part in value.items())
    return value


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _from_label(distribution: Distribution, label: Any) -> Any:
    if distribution.choice is None:
        return label.item() if hasattr(label, "item") else label  # NumPy scalars
    return next(value for value in distribution.choice if label_of(value) == label)


def _times(value: Any, factor: float) -> Any:
    return value if factor == 1 else value * factor


def _grid_values(distribution: Distribution) -> list[Any]:
    if distribution.choice is not None:
        return [label_of(value) for value in distribution.choice]
    low, high = distribution.bounds or (0, 0)
    count = distribution.points or 2
    steps = [number / (count - 1) for number in range(count)]
    if distribution.log_uniform is not None:
        return [low * (high / low) ** step for step in steps]
    values = [low + (high - low) * step for step in steps]
    if distribution.int_uniform is not None:
        return list(dict.fromkeys(round(value) for value in values))
    return values


def _value_problems(recipe: Recipe, key: str, distribution: Distribution, where: str) -> list[str]:
    """Try every value of a choice, or both bounds and a value between them, in the recipe."""
    values = distribution.choice or distribution.bounds or ()
    if distribution.bounds is not None and distribution.int_uniform is None:
        low, high = distribution.bounds
        values = (*values, low + 0.37 * (high - low))
    labels = [str(label_of(value)) for value in values]
    if len(set(labels)) < len(labels):
        return [f"{key}: a value of choice occurs twice in {', '.join(labels)}."]
    problems = []
    for value in values:
        try:
            recipe.with_changes({key: value}, where)
        except ConfigError as error:
            problems.append(str(error).removeprefix(f"In {where}: "))
    return problems


def _bounds_text(distribution: Distribution) -> str:
    low, high = distribution.bounds or (0, 0)
    return f"{low:g} and {high:g}"

"""A search space: recipe fields that vary, their distributions, and the values of trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorakit.config import TaskType
from lorakit.errors import ConfigError, did_you_mean
from lorakit.recipes.search_sections import Distribution, SearchConfig

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
    "training.eval_delay": "trials are evaluated after every epoch",
    "training.save_strategy": "trials are saved after every epoch",
    "training.save_steps": "trials are saved after every epoch",
    "training.save_total_limit": "trials are saved after every epoch",
    "training.load_best_model_at_end": "every trial keeps its best epoch",
    "training.metric_for_best_model": "every trial keeps its best epoch by the search's `metric`",
    "training.greater_is_better": "set `mode` in the search section",
    **dict.fromkeys(
        ("data.validation", "data.validation_split", "data.max_validation_rows"),
        "trials are compared on the same validation examples",
    ),
    "data.validation_fraction": "trials are compared on the same validation examples",
    **dict.fromkeys(("training", "data", "evaluation", "lora"), "name a field of the section"),
}

_CHOOSE_HELD_OUT = ("training.seed", "data.train", "data.subset", "data.train_split")
_CHANGE_LOSS = ("training.label_smoothing_factor", "data.class_weights")
_CHANGE_TOKENS = ("data.turns", "data.max_length", "data.max_target_length", "data.new_tokens")
_OF_TOKENS = ("eval_loss", "eval_perplexity", "eval_mean_token_accuracy")


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

    def check(self, recipe: Recipe, settings: SearchConfig) -> None:
        """Refuse a space with values that are invalid in the recipe, or that cannot be compared.

        Raises:
            ConfigError: Lists every problem: unknown fields, wrong values, copies of missing
                fields, ranges without points in a grid, fields that change what is measured.
        """
        problems: list[str] = []
        for key, distribution in self.distributions.items():
            reason = _NOT_SEARCHED.get(key) or _comparison_problem(recipe, key, settings.metric)
            if reason is None and key.split(".")[0] in ("search", "study"):
                reason = "it configures the search"
            part = next((one for one in self.distributions if one.startswith(f"{key}.")), None)
            if reason is None and part is not None:
                reason = f"it contains '{part}', which is searched too. Leave one of them out"
            if reason is not None:
                problems.append(f"'{key}' cannot be searched: {reason}.")
            elif distribution.same_as is not None:
                problems += self._copy_problems(recipe, key, distribution)
            else:
                problems += _value_problems(recipe, key, _tried(distribution), self.where)
            if settings.algorithm == "grid" and distribution.bounds and distribution.points is None:
                problems.append(
                    f"{key}: a grid needs a number of points between {_bounds_text(distribution)}. "
                    "Add `points: 4`, or use choice."
                )
        if problems:
            different = list(dict.fromkeys(problems))
            count = f"{len(different)} problems in " if len(different) > 1 else ""
            raise ConfigError(f"Cannot search {count}{self.where}: " + "\n  ".join(different))

    def _copy_problems(self, recipe: Recipe, key: str, copy: Distribution) -> list[str]:
        there = self.distributions.get(copy.same_as or "")
        if there is None or there.same_as is not None:
            known = [name for name, other in self.distributions.items() if other.same_as is None]
            hint = did_you_mean(copy.same_as or "", known) or f" Known: {', '.join(known)}."
            return [f"{key}: same_as: got '{copy.same_as}', expected a field of the space.{hint}"]
        if copy.times != 1 and not all(_is_number(value) for value in _tried(there)):
            return [
                f"{key}: times: got {copy.times:g} for '{copy.same_as}', whose values are not all "
                "numbers. Leave times out."
            ]
        values = [_times(value, copy.times) for value in _tried(there)]
        return _value_problems(recipe, key, values, self.where)

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
    modules = tuple(as_list(target_set.target_modules) for target_set in target_sets)
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


def as_list(value: Any) -> Any:
    """Return a tuple as a list, as recipes have it, and other values unchanged."""
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


def _tried(distribution: Distribution) -> list[Any]:
    """Return every value of a choice, or both bounds and a value between them."""
    values = list(distribution.choice or distribution.bounds or ())
    if distribution.bounds is not None and distribution.int_uniform is None:
        low, high = distribution.bounds
        values.append(low + 0.37 * (high - low))
    return values


def _value_problems(recipe: Recipe, key: str, values: Sequence[Any], where: str) -> list[str]:
    """Try values in the recipe."""
    labels = [label_of(value) for value in values]
    texts = [str(label) for label in labels]
    if min(len(set(labels)), len(set(texts))) < len(labels):  # 1 and true are equal
        return [f"{key}: a value of choice occurs twice in {', '.join(texts)}."]
    problems = []
    for value in values:
        try:
            recipe.with_changes({key: value}, where)
        except ConfigError as error:
            problems.append(str(error).removeprefix(f"In {where}: "))
    return problems


def _comparison_problem(recipe: Recipe, key: str, metric: str) -> str | None:
    """Return why trials with other values of a field would not be compared by the same measure."""
    data = recipe.data
    is_held_out = data.validation is None and data.validation_split is None
    if key in _CHOOSE_HELD_OUT and is_held_out:
        return (
            "it also chooses the held-out validation examples, and trials are compared on the same "
            "ones. Name data.validation, or data.validation_split"
        )
    is_loss = metric.endswith(("loss", "perplexity")) and not metric.startswith("eval_f1_")
    if is_loss and (key in _CHANGE_LOSS or key.partition(".")[0] == "objective"):
        return (
            f"trials with other values have other losses, which cannot be compared by {metric}. "
            "Set another `metric`, or leave the field out"
        )
    counts_tokens = recipe.task == TaskType.TOKEN_CLS or metric in _OF_TOKENS
    if key in _CHANGE_TOKENS and recipe.task != TaskType.SEQ_CLS and counts_tokens:
        return f"it chooses the tokens that {metric} is measured on, so trials cannot be compared"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bounds_text(distribution: Distribution) -> str:
    low, high = distribution.bounds or (0, 0)
    return f"{low:g} and {high:g}"

"""What the numbers under `training:` may be: one table, looked at before anything is loaded."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field

_LARGEST_INTEGER = 2**31 - 1
_LARGEST_SEED = 2**32 - 1  # numpy's
_MOST_EXAMPLES = 1_000_000
_MOST_EPOCHS = 1_000_000

_SHARE = {"ge": 0, "lt": 1}
_POSITIVE = {"gt": 0}
_NOT_NEGATIVE = {"ge": 0}
_AT_LEAST_ONE = {"ge": 1, "le": _LARGEST_INTEGER}
_EXAMPLES = {"ge": 1, "le": _MOST_EXAMPLES}
_SEED = {"ge": 0, "le": _LARGEST_SEED}

RANGES: dict[str, dict[str, Any]] = {
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": _POSITIVE,
    "data_seed": _SEED,
    "dataloader_num_workers": {"ge": 0, "le": 1024},
    "dataloader_prefetch_factor": _AT_LEAST_ONE,
    "dataset_num_proc": {"ge": 1, "le": 1024},
    "ddp_bucket_cap_mb": _AT_LEAST_ONE,
    "ddp_timeout": _AT_LEAST_ONE,
    "eval_accumulation_steps": _AT_LEAST_ONE,
    "eval_delay": _NOT_NEGATIVE,
    "eval_steps": _POSITIVE,
    "generation_max_length": _AT_LEAST_ONE,
    "generation_num_beams": _AT_LEAST_ONE,
    "gradient_accumulation_steps": _EXAMPLES,
    "label_smoothing_factor": _SHARE,
    "learning_rate": _POSITIVE,
    "logging_steps": _POSITIVE,
    "max_grad_norm": _NOT_NEGATIVE,
    "max_steps": {"ge": -1, "le": _LARGEST_INTEGER},
    "neftune_noise_alpha": _NOT_NEGATIVE,
    "num_train_epochs": {"gt": 0, "le": _MOST_EPOCHS},
    "per_device_eval_batch_size": _EXAMPLES,
    "per_device_train_batch_size": _EXAMPLES,
    "router_aux_loss_coef": _NOT_NEGATIVE,
    "save_steps": _POSITIVE,
    "save_total_limit": _AT_LEAST_ONE,
    "seed": _SEED,
    "torch_empty_cache_steps": _AT_LEAST_ONE,
    "warmup_steps": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
}
"""Bounds by key, as pydantic's `Field` takes them."""


def in_range(name: str, hint: Any) -> Any:
    """Return the type of a training argument with its bounds; others stay as they are.

    A number is finite and not a boolean, which in Python is one.
    """
    parts = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    if not parts & {int, float}:
        return hint
    checks: list[Any] = [AfterValidator(_finite)]
    if bool not in parts:
        checks.append(BeforeValidator(_no_boolean))
    if name in RANGES:
        checks.insert(0, Field(**RANGES[name]))
    if name == "pad_to_multiple_of":  # or a word
        checks.append(AfterValidator(_at_least_one))
    if name == "max_steps":
        checks.append(AfterValidator(_some_steps))
    return Annotated[(hint, *checks)]  # type: ignore[return-value]


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number")
    return value


def _finite(value: Any) -> Any:
    # An integer too large for a float is found by its bounds.
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ValueError("expected a finite number")
    return value


def _at_least_one(value: Any) -> Any:
    if isinstance(value, int) and value < 1:
        raise ValueError("expected at least 1")
    return value


def _some_steps(value: Any) -> Any:
    if value == 0:
        raise ValueError("expected at least 1, or -1 to train for num_train_epochs")
    return value

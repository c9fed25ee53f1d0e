"""Bounds of the numbers under `training:`, checked before anything is loaded."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field

from lorakit.config.lora_config import reject_bool

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
"""Bounds by key, as arguments of pydantic's `Field`."""


def with_bounds(name: str, hint: Any) -> Any:
    """Add bounds to the type of a training argument; types that are not numbers stay unchanged.

    Numbers must be finite and not booleans.
    """
    parts = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    if not parts & {int, float}:
        return hint
    checks: list[Any] = [AfterValidator(_require_finite)]
    if bool not in parts:
        checks.append(BeforeValidator(reject_bool))
    if name in RANGES:
        checks.insert(0, Field(**RANGES[name]))
    if name == "pad_to_multiple_of":  # may also be a word
        checks.append(AfterValidator(_require_at_least_one))
    if name == "max_steps":
        checks.append(AfterValidator(_require_some_steps))
    return Annotated[(hint, *checks)]


def _require_finite(value: Any) -> Any:
    # The bounds reject an integer that is too large for a float.
    if isinstance(value, float) and not abs(value) < float("inf"):
        raise ValueError("expected a finite number")
    return value


def _require_at_least_one(value: Any) -> Any:
    if isinstance(value, int) and value < 1:
        raise ValueError("expected at least 1")
    return value


def _require_some_steps(value: Any) -> Any:
    if value == 0:
        raise ValueError("expected at least 1, or -1 to train for num_train_epochs")
    return value

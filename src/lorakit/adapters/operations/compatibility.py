"""Checks of what adapters must have in common to be combined."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any, cast

import torch
from torch import Tensor

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.operations.requirements import list_whole_paths
from lorakit.adapters.peft_files.parameter_keys import find_named_by_weight
from lorakit.config import LoraConfig
from lorakit.errors import AdapterMismatchError
from lorakit.injection.selection.parameters import WEIGHT

_SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
_PARAMETERS = "target_parameters"


def common_base(adapters: Mapping[str, Adapter], problems: list[str]) -> str | None:
    """Return the base that the adapters record; different names are a problem."""
    recorded = {name: one.base_model for name, one in adapters.items() if one.base_model}
    if len({_normal(base) for base in recorded.values()}) > 1:
        text = ", ".join(f"{base!r} in {name}" for name, base in recorded.items())
        problems.append(
            f"their base is {text}; if these are the same, give its name (base_model, or "
            "--base-model on the command line)."
        )
    return next(iter(recorded.values()), None)


def _normal(base: str) -> str:
    return str(Path(base).resolve()) if Path(base).is_dir() else base


def common_base_weights(adapters: Mapping[str, Adapter], problems: list[str]) -> dict[str, Tensor]:
    """Return the base weights that the adapters repeat; different ones are a problem."""
    found, differing = _unite_tensors({name: one.base_weights for name, one in adapters.items()})
    problems += [
        f"the base's {key}.weight differs between {first} and {name}."
        for key, (first, name) in differing.items()
    ]
    return found


def common_heads(adapters: Mapping[str, Adapter], heads_from: str | None) -> dict[str, Tensor]:
    """Return the heads and biases of all adapters that are trained in full.

    Args:
        adapters: The adapters by name.
        heads_from: Name of the adapter whose tensors to take if they differ.

    Raises:
        AdapterMismatchError: Two adapters differ, and `heads_from` is None.
    """
    names: list[str] = [*adapters] if heads_from is None else [heads_from, *adapters]
    found, differing = _unite_tensors({name: adapters[name].replaced for name in names})
    if differing and heads_from is None:
        key, (first, name) = next(iter(differing.items()))
        more = f" ({len(differing) - 1} more such tensors)" if len(differing) > 1 else ""
        raise AdapterMismatchError(
            f"Cannot combine {', '.join(adapters)}: {key} differs between {first} and {name}, and "
            f"tensors trained in full cannot be added.{more} Name the adapter whose "
            f"heads and biases to keep: heads_from={first!r}, or --heads-from "
            f"{quote(first)} on the command line."
        )
    return found


def _unite_tensors(
    tensors: Mapping[str, Mapping[str, Tensor]],
) -> tuple[dict[str, Tensor], dict[str, tuple[str, str]]]:
    """Return the first tensor of each key, and the first two adapters whose tensors differ."""
    found: dict[str, tuple[str, Tensor]] = {}
    differing: dict[str, tuple[str, str]] = {}
    for name, tensors_of_one in tensors.items():
        for key, tensor in tensors_of_one.items():
            first, earlier = found.setdefault(key, (name, tensor))
            if earlier.shape != tensor.shape or not torch.equal(earlier, tensor):
                differing.setdefault(key, (first, name))
    return {key: tensor for key, (_, tensor) in found.items()}, differing


def _ignoring_order(setting: Any) -> object:
    return sorted(cast(tuple[Any, ...], setting)) if isinstance(setting, tuple) else setting


def common_settings(
    adapters: Mapping[str, Adapter], paths: Sequence[str], problems: list[str]
) -> LoraConfig:
    """Return the first adapter's configuration, changed to target the modules of all adapters."""
    configs = {name: one.config for name, one in adapters.items()}
    first = next(iter(configs.values()))
    if len({config.bias for config in configs.values()}) > 1:
        text = ", ".join(f"{config.bias!r} in {name}" for name, config in configs.items())
        problems.append(f"bias is {text}; expected one setting.")
    tasks = {name: config.task_type for name, config in configs.items() if config.task_type}
    if len(set(tasks.values())) > 1:
        text = ", ".join(f"{task} in {name}" for name, task in tasks.items())
        problems.append(f"their task is {text}; expected one.")
    heads = dict.fromkeys(name for config in configs.values() for name in config.modules_to_save)
    update: dict[str, Any] = {
        "modules_to_save": tuple(heads),
        "task_type": next(iter(tasks.values()), None),
        "fan_in_fan_out": any(config.fan_in_fan_out for config in configs.values()),
    }
    keys = (*_SELECTION, _PARAMETERS)
    selections = [[_ignoring_order(getattr(c, key)) for key in keys] for c in configs.values()]
    if any(selection != selections[0] for selection in selections):
        regexes = [c for c in configs.values() if isinstance(c.target_modules, str)]
        update |= dict.fromkeys(_SELECTION)
        stacked = frozenset[str]().union(*(one.stacked for one in adapters.values()))
        by_weight = frozenset[str]().union(
            *(find_named_by_weight(one.factors, one.config) for one in adapters.values())
        )
        modules = dict.fromkeys(path for path in paths if path not in stacked | by_weight)
        update["target_modules"] = list_whole_paths(modules, regexes[0] if regexes else first)
        weights = {f"{path}.{WEIGHT}" for path in by_weight}
        update[_PARAMETERS] = tuple(sorted(stacked | weights))
    return first.model_copy(update=update)

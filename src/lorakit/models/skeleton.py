"""Build a base model from its configuration, without weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from lorakit.errors import ConfigError
from lorakit.layers.kinds.experts import expert_parameters, is_known_experts
from lorakit.libraries.foreign_code import build_from_config, load_pretrained
from lorakit.models.loading_problems import loading_error
from lorakit.models.local_paths import check_local_path

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers")
"""Sizes that a configuration must state; transformers' defaults are those of another model."""

_ALIGNED_BYTES = 16
"""torch's grouped product takes experts whose rows are a multiple of this size."""


def load_skeleton(
    auto_class: Any,
    name: str,
    *,
    key: str = "model",
    device: torch.device | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Build a model from the configuration of a checkpoint.

    Args:
        auto_class: The auto class, such as `AutoModelForCausalLM`.
        name: Hub id or local directory.
        key: The recipe key or file that has the name, for errors.
        device: Device of the uninitialized parameters; None for the meta device.
        options: Options of the configuration, and `dtype` of the parameters; None values are
            dropped.

    Raises:
        MissingFileError: The model does not exist.
        ConfigError: The model cannot do the task, its configuration leaves out a size, or it comes
            with code that must not run.
    """
    config = load_config(name, key=key, **options)
    dtype = {"dtype": options["dtype"]} if options.get("dtype") else {}
    trusted = bool(options.get("trust_remote_code"))
    return build_skeleton(
        auto_class, config, name, key=key, device=device, trust_remote_code=trusted, **dtype
    )


def build_skeleton(
    auto_class: Any,
    config: Any,
    name: str,
    *,
    key: str = "model",
    device: torch.device | None = None,
    trust_remote_code: bool = False,
    **how: Any,
) -> PreTrainedModel:
    """Build a model from a configuration that has been loaded.

    Args:
        auto_class: The auto class, such as `AutoModelForCausalLM`.
        config: The result of `load_config`.
        name: Hub id or local directory of the configuration.
        key: The recipe key or file that has the name, for errors.
        device: Device of the uninitialized parameters; None for the meta device.
        trust_remote_code: Whether code that comes with the model may run.
        how: `dtype` of the parameters.

    Raises:
        ConfigError: The model cannot do the task, or its configuration is damaged.
    """
    try:
        model = build_from_config(
            auto_class, config, trust_remote_code=trust_remote_code, device=device, **how
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise loading_error(name, key, "model", error, auto_class) from error
    compute_odd_experts_one_by_one(model)
    return model


def compute_odd_experts_one_by_one(model: PreTrainedModel) -> None:
    """Let transformers compute experts one by one if their rows are no multiple of 16 bytes.

    So is a width of 20 in bfloat16; torch would raise "strides should be multiple of 16 bytes" in
    the first step. Models of usual widths are left as they are.

    Args:
        model: A base, with weights or without.
    """
    if any(_are_odd(module) for module in model.modules() if is_known_experts(module)):
        model.set_experts_implementation("eager")


def _are_odd(experts: nn.Module) -> bool:
    weights = [experts.get_parameter(name) for name in expert_parameters(experts)]
    return any(
        width * weight.element_size() % _ALIGNED_BYTES
        for weight in weights
        for width in weight.shape[1:]
    )


def load_config(name: str, *, key: str = "model", **options: Any) -> Any:
    """Return the configuration of a checkpoint, which must state all sizes of the model.

    Args:
        name: Hub id or local directory.
        key: The recipe key or file that has the name, for errors.
        options: Options of the configuration; None values are dropped.

    Raises:
        MissingFileError: The model does not exist.
        ConfigError: It leaves out a size, or comes with code that must not run.
    """
    check_local_path(name, key)
    try:
        config = model_config(name, options)
        _require_sizes(config, name, key, options)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise loading_error(name, key, "model", error) from error
    return config


def model_config(name: str, options: Mapping[str, Any]) -> Any:
    """Return the configuration of a checkpoint, changed by options such as its labels."""
    given = {key: value for key, value in drop_none(options).items() if key != "dtype"}
    trusted = given.pop("trust_remote_code", False)
    return load_pretrained(AutoConfig, name, trust_remote_code=trusted, **given)


def saved_dtype(config: Any, name: str) -> torch.dtype:
    """Return the dtype that loading a checkpoint in its saved dtype gives.

    Args:
        config: The result of `load_config`.
        name: Hub id or local directory of the checkpoint.
    """
    saved = config.dtype or config.get_text_config().dtype
    if saved is None:
        saved = _first_dtype(Path(name)) or torch.float32
    return getattr(torch, saved) if isinstance(saved, str) else saved


def _first_dtype(directory: Path) -> torch.dtype | None:
    """Return the dtype of the first weight of a checkpoint on disk, or None."""
    for path in sorted(directory.glob("*.safetensors")) if directory.is_dir() else ():
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 (it is not a mapping)
                dtype = weights.get_slice(name).get_dtype()
                known = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
                if dtype in known:
                    return known[dtype]
    return None


def drop_none(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are not None."""
    return {key: value for key, value in options.items() if value is not None}


def _require_sizes(config: Any, name: str, key: str, given: Mapping[str, Any]) -> None:
    """Refuse a configuration that leaves sizes to defaults, which are those of another model.

    Raises:
        ConfigError: Names the fields that are missing.
    """
    revision = {"revision": given["revision"]} if given.get("revision") else {}
    # It has just been read, so a hub file is in the cache.
    values, _ = PreTrainedConfig.get_config_dict(name, local_files_only=True, **revision)
    keys = set(values).union(*(value for value in values.values() if isinstance(value, dict)))
    text_config = config.get_text_config()
    aliases = type(text_config).attribute_map
    missing = [
        aliases.get(size, size)
        for size in _SIZES
        if hasattr(text_config, size) and not keys & {size, aliases.get(size, size)}
    ]
    if missing:
        is_here = Path(name).is_dir()
        where = Path(name) / "config.json" if is_here else f"the config.json of '{name}'"
        raise ConfigError(
            f"The model in {key} does not say how large it is: {where} has no "
            f"{', '.join(missing)}, expected every size of a model of type '{config.model_type}'. "
            "Add what is missing."
        )

"""A base model without its weights: what its configuration alone says of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from lorakit.errors import ConfigError
from lorakit.libraries.foreign_code import build_from_config, load_pretrained
from lorakit.models.loading_problems import cannot_load, check_local

_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers")
"""What a configuration has to say itself; transformers would take another model's numbers."""


def load_skeleton(
    auto_class: Any,
    name: str,
    *,
    key: str = "model",
    device: torch.device | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Build a model from its configuration alone.

    Args:
        auto_class: Such as `AutoModelForCausalLM`.
        name: Hub id or local directory.
        key: Where the name stands, for an error: a recipe key or a file.
        device: Of its parameters, which hold nothing of use; None for the meta device.
        options: Those of its configuration, and `dtype`: that of its parameters; those that are
            None are left out.

    Raises:
        MissingFileError: There is no such model.
        ConfigError: The model cannot do the task, its configuration does not say how large it is,
            or it brings code that must not run.
    """
    config = load_config(name, key=key, **options)
    dtype = {"dtype": options["dtype"]} if options.get("dtype") else {}
    trusted = bool(options.get("trust_remote_code"))
    return skeleton_of(
        auto_class, config, name, key=key, device=device, trust_remote_code=trusted, **dtype
    )


def skeleton_of(
    auto_class: Any,
    config: Any,
    name: str,
    *,
    key: str = "model",
    device: torch.device | None = None,
    trust_remote_code: bool = False,
    **how: Any,
) -> PreTrainedModel:
    """Build a model from a configuration that has been read.

    Args:
        auto_class: Such as `AutoModelForCausalLM`.
        config: What `load_config` returned.
        name: Hub id or local directory it came from.
        key: Where the name stands, for an error.
        device: Of its parameters, which hold nothing of use; None for the meta device.
        trust_remote_code: Whether code that comes with the model may run.
        how: `dtype` of its parameters.

    Raises:
        ConfigError: The model cannot do the task, or its configuration is damaged.
    """
    try:
        with torch.device(device or "meta"):
            return build_from_config(auto_class, config, trust_remote_code=trust_remote_code, **how)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise cannot_load(name, key, "model", error, auto_class) from error


def load_config(name: str, *, key: str = "model", **options: Any) -> Any:
    """Return the configuration of a checkpoint that is to say how large its model is.

    Args:
        name: Hub id or local directory.
        key: Where the name stands, for an error: a recipe key or a file.
        options: Those of the configuration; those that are None are left out.

    Raises:
        MissingFileError: There is no such model.
        ConfigError: It leaves out a size, or brings code that must not run.
    """
    check_local(name, key)
    try:
        config = model_config(name, options)
        _require_sizes(config, name, key, options)
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError) as error:
        raise cannot_load(name, key, "model", error) from error
    return config


def model_config(name: str, options: Mapping[str, Any]) -> Any:
    """Return the configuration of a checkpoint, with the options that change it (its labels)."""
    given = {key: value for key, value in given_options(options).items() if key != "dtype"}
    trusted = given.pop("trust_remote_code", False)
    return load_pretrained(AutoConfig, name, trust_remote_code=trusted, **given)


def given_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the options that are None."""
    return {key: value for key, value in options.items() if value is not None}


def _require_sizes(config: Any, name: str, key: str, given: Mapping[str, Any]) -> None:
    """Refuse a configuration that leaves sizes to defaults, which are those of some other model.

    Raises:
        ConfigError: Names the fields that are missing.
    """
    revision = {"revision": given["revision"]} if given.get("revision") else {}
    # It has just been read, so that of the hub is in the cache.
    said, _ = PreTrainedConfig.get_config_dict(name, local_files_only=True, **revision)
    words = set(said).union(*(part for part in said.values() if isinstance(part, dict)))
    text_config = config.get_text_config()
    own_names = type(text_config).attribute_map
    missing = [
        own_names.get(size, size)
        for size in _SIZES
        if hasattr(text_config, size) and not words & {size, own_names.get(size, size)}
    ]
    if missing:
        is_here = Path(name).is_dir()
        where = Path(name) / "config.json" if is_here else f"the config.json of '{name}'"
        raise ConfigError(
            f"The model in {key} does not say how large it is: {where} has no "
            f"{', '.join(missing)}, expected every size of a model of type '{config.model_type}'. "
            "Add what is missing."
        )

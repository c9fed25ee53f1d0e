"""Check that an adapter's configuration and tensors are from one save.

The tensors file records the configuration it was saved with; files of other tools do not.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorakit.config import LoraConfig
from lorakit.errors import AdapterFileError, first_few
from lorakit.files.json_files import parse_json_object
from lorakit.injection.selection.attention import OUTPUT
from lorakit.injection.selection.parameters import WEIGHT
from lorakit.injection.selection.targets import match_targets, name_matches

CONFIG_RECORD = "lorakit_config"
"""Name of the record in the metadata of the safetensors file."""

_EDITABLE = {
    *("base_model_name_or_path", "task_type", "revision", "lora_dropout"),
    *("inference_mode", "peft_version", "auto_mapping", "runtime_config"),
}
"""Settings that may be edited: they do not affect the meaning of the tensors."""

_OFF: tuple[Any, ...] = (None, False, {}, [])
_SHOWN = 60


def differences(values: Mapping[str, Any], metadata: Mapping[str, str]) -> list[str]:
    """Return the keys in which a configuration differs from the record in the tensors file."""
    if CONFIG_RECORD not in metadata:
        return []
    recorded = _read_record(metadata)
    keys = dict.fromkeys([*recorded, *values])
    return [key for key in keys if not _equal(values.get(key), recorded.get(key))]


def disagreement(
    values: Mapping[str, Any], metadata: Mapping[str, str], config: Path, weights: Path
) -> str | None:
    """Return an error message if a configuration is not the one its tensors were saved with.

    Args:
        values: Values of the configuration.
        metadata: Metadata of the tensors file.
        config: Path of the configuration.
        weights: Path of the tensors file.

    Returns: None if only settings differ that may be edited.
    """
    recorded = _read_record(metadata)
    differing = [key for key in differences(values, metadata) if key not in _EDITABLE]
    if not differing:
        return None
    found = first_few(f"{key}={_short_json(values.get(key))}" for key in differing)
    saved = first_few(f"{key}={_short_json(recorded.get(key))}" for key in differing)
    return (
        f"The two files of an adapter do not belong together in {config.parent}: {config.name} has "
        f"{found}, and {weights.name} was saved with {saved}. A save was interrupted, or the file "
        "was edited. Write the values back or save the adapter again; if you mean the change, "
        f"allow it (allow_edited_config=True, or `lorakit convert --allow-edited-config "
        f"{config.parent} NEW`)."
    )


def require_selected(paths: Iterable[str], config: LoraConfig, where: str) -> None:
    """Reject factors that a configuration does not select, of which PEFT reads none.

    Args:
        paths: Paths of the modules and parameters with factors.
        config: The file's configuration.
        where: Name of the file for error messages.

    Raises:
        AdapterFileError: Names the first few.
    """
    names = config.target_parameters
    modules = [p for p in paths if not any(name_matches(names, n) for n in (p, f"{p}.{WEIGHT}"))]
    selected, _ = match_targets(config, modules, modules)
    known = {*selected, *(f"{path}.{OUTPUT}" for path in selected)}
    others = [path for path in modules if path not in known]
    if others:
        raise AdapterFileError(
            f"The two files of an adapter do not belong together in {where}: there are tensors for "
            f"{first_few(others)}, expected only modules that the configuration selects "
            "(target_modules, exclude_modules, layers_to_transform). Write their names into it, or "
            "save the adapter again."
        )


def _read_record(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        return parse_json_object(metadata[CONFIG_RECORD].encode("utf-8", "replace"))
    except ValueError:
        return {}


def _equal(one: Any, other: Any) -> bool:
    return one == other or (one in _OFF and other in _OFF)


def _short_json(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"

"""Folders of several adapters in PEFT's layout: "default" at the top, others in subfolders."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.on_model.save_and_load import save_adapter
from lorakit.adapters.peft_files.files import CONFIG_FILE
from lorakit.errors import MissingFileError
from lorakit.injection import (
    Injection,
    active_adapters,
    adapter_names,
    add_adapter,
    set_adapter,
)
from lorakit.injection.activation import remove_adapters
from lorakit.injection.state import check_new_name, require_adapter, require_state

_DEFAULT = "default"


def adapters_in(path: str | Path) -> dict[str, Path]:
    """Return the directory of every adapter in a folder by name; "default" comes first.

    Raises:
        MissingFileError: The folder holds no adapter.
    """
    folder = Path(path)
    found = {_DEFAULT: folder} if (folder / CONFIG_FILE).is_file() else {}
    inside = sorted(file.parent for file in folder.glob(f"*/{CONFIG_FILE}"))
    found |= {directory.name: directory for directory in inside}
    if not found:
        raise MissingFileError(
            f"No adapter in {folder}, expected {CONFIG_FILE} there or in sub-folders named after "
            "adapters. Name another folder."
        )
    return found


def save_adapters(
    model: nn.Module, path: str | Path, names: Sequence[str] | None = None
) -> list[Path]:
    """Write several adapters of a model to one folder, as PEFT's save_pretrained does.

    Args:
        model: A model with adapters.
        path: The folder; "default" is written to it, any other adapter to a subfolder of its name.
        names: Names of the adapters; None writes all.

    Returns: The paths written.

    Raises:
        AdapterNameError: There is no such adapter; nothing is written.
    """
    require_state(model)
    chosen = adapter_names(model) if names is None else tuple(names)
    for name in chosen:
        require_adapter(model, name)
    written: list[Path] = []
    for name in chosen:
        folder = Path(path) if name == _DEFAULT else Path(path) / name
        written += save_adapter(model, folder, name)
    return written


def load_adapters(
    model: nn.Module, path: str | Path, names: Sequence[str] | None = None
) -> dict[str, Injection]:
    """Load the adapters of a folder into a model and activate the last one.

    Args:
        model: The base, with or without other adapters.
        path: A folder written by `save_adapters` or PEFT.
        names: Names of the adapters; None loads all.

    Returns: The injection of each adapter by name.

    Raises:
        MissingFileError: There is no adapter, or none with that name.
        AdapterNameError: A name is taken or malformed.
        AdapterFileError, AdapterMismatchError: As in `load_adapter`; the model is not modified.
    """
    found = adapters_in(path)
    chosen = tuple(found) if names is None else tuple(names)
    missing = [name for name in chosen if name not in found]
    if missing:
        raise MissingFileError(
            f"No adapter named {missing[0]!r} in {path}; expected one of {', '.join(found)}. Name "
            "one of them."
        )
    for name in chosen:
        check_new_name(model, name)
    adapters = {name: Adapter.load(found[name]) for name in chosen}
    added: dict[str, Injection] = {}
    active_before = active_adapters(model)
    try:
        for name, adapter in adapters.items():
            added[name] = add_adapter(model, adapter, name, trainable=False)
    except BaseException:
        if added:
            remove_adapters(model, tuple(added))
        if active_before:
            set_adapter(model, active_before)
        raise
    return added

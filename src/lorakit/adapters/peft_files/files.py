"""Reading and writing the two files of an adapter directory; pickles only on request."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lorakit.adapters.peft_files.consistency import CONFIG_RECORD, differences, disagreement
from lorakit.adapters.peft_files.valid_tensors import load_pickle, require_savable, require_valid
from lorakit.errors import (
    AdapterFileError,
    ConfigError,
    MissingFileError,
    OutputExistsError,
    did_you_mean,
)
from lorakit.files.atomic import creating_directory, replacing_files
from lorakit.files.json_files import read_json_object
from lorakit.files.tensor_files import (
    FileChangedError,
    TensorEntry,
    TensorFile,
    read_entries,
    read_safetensors,
    safetensors_bytes,
    write_safetensors,
)
from lorakit.libraries.hub import fetch_from_hub, is_hub_id, require_inside

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"

_RETRY_S, _PAUSE_S = 5.0, 0.01
"""How long to reread two files that do not agree, as a save may be in progress."""

_SETTLED_S = 2.0
"""Age of two files at which no save can be in progress."""


class AdapterFiles(NamedTuple):
    """Contents of the two files of an adapter."""

    values: dict[str, Any]
    """Values of the configuration."""
    tensors: dict[str, Tensor]
    """CPU tensors by key."""
    where: str
    """Name of the directory for messages."""
    is_from_lorakit: bool
    """Whether lorakit wrote the tensors file."""


def read_adapter_files(
    path: str | Path,
    *,
    allow_pickle: bool = False,
    allow_edited_config: bool = False,
    revision: str | None = None,
    subfolder: str | None = None,
    token: str | bool | None = None,
) -> AdapterFiles:
    """Read an adapter directory or hub repository.

    Both files are from one save, even if another process saves to the directory meanwhile: a
    tensors file written by lorakit records the configuration it belongs to.

    Args:
        path: Directory or hub id.
        allow_pickle: Whether to read adapter_model.bin if there is no adapter_model.safetensors;
            it may hold tensors only.
        allow_edited_config: Whether adapter_config.json may have been edited since the tensors
            were saved.
        revision: Branch, tag or commit of a hub repository; None takes the newest.
        subfolder: Folder inside the directory or repository that holds the adapter.
        token: Hub token for a private repository.

    Raises:
        MissingFileError: The directory or one of its files does not exist.
        AdapterFileError: A file is damaged, or the two are not from one save.
    """
    directory = _directory(path, allow_pickle, revision, subfolder, token)
    config_path, weights_path = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    if allow_pickle and not weights_path.is_file() and (directory / PICKLE_FILE).is_file():
        weights_path = directory / PICKLE_FILE
    _require_files(config_path, weights_path)
    end = time.monotonic() + _RETRY_S
    while True:
        # In this order: a save moves its configuration last, so old tensors cannot be read with
        # the new configuration.
        values = _read_config(config_path)
        read = _read_file(weights_path, allow_pickle, end)
        differing = differences(values, read.metadata)
        if not differing or time.monotonic() > end or _are_settled(config_path, weights_path):
            break
        time.sleep(_PAUSE_S)
    if differing and not allow_edited_config:
        problem = disagreement(values, read.metadata, config_path, weights_path)
        if problem:
            raise AdapterFileError(problem)
    require_valid(read.tensors, str(weights_path))
    return AdapterFiles(values, read.tensors, str(directory), CONFIG_RECORD in read.metadata)


def read_adapter_header(directory: Path) -> tuple[dict[str, Any], dict[str, TensorEntry]]:
    """Read the configuration of an adapter, and dtypes and shapes of its tensors but no values.

    Args:
        directory: A local directory in PEFT's layout, with a safetensors file.

    Returns: Values of the configuration, and the tensors by key.

    Raises:
        MissingFileError: One of the files does not exist.
        AdapterFileError: A file is damaged.
    """
    config_path, weights_path = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    _require_files(config_path, weights_path)
    try:
        entries = read_entries(weights_path)
    except (ValueError, OSError) as error:
        raise _unreadable(weights_path, error) from None
    return _read_config(config_path), entries


def _require_files(config_path: Path, weights_path: Path) -> None:
    missing = [file.name for file in (config_path, weights_path) if not file.is_file()]
    if missing:
        raise MissingFileError(_missing_message(config_path.parent, missing))


def _are_settled(*files: Path) -> bool:
    newest = max(file.stat().st_ctime for file in files)
    return time.time() - newest > _SETTLED_S


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except ValueError as error:
        raise AdapterFileError(
            f"Cannot read {path}: {error}, expected a JSON object. Save or fetch the adapter again."
        ) from None


def read_tensors(path: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Read a file of tensors by name: safetensors, or a pickle of tensors if that is allowed.

    Raises:
        AdapterFileError: The file is damaged, a pickle that is not allowed or holds other objects,
            or holds a tensor that is not floating-point or not finite.
    """
    tensors = _read_file(path, allow_pickle, time.monotonic() + _RETRY_S).tensors
    require_valid(tensors, str(path))
    return tensors


def _read_file(path: Path, allow_pickle: bool, end: float) -> TensorFile:
    """Read tensors; retry until the time `end` (monotonic clock) while the file changes."""
    if path.suffix != ".safetensors":
        return TensorFile(load_pickle(path, allow_pickle), {})
    try:
        while True:
            try:
                return read_safetensors(path)
            except FileChangedError:
                if time.monotonic() > end:
                    raise ValueError("it is being written to") from None
                time.sleep(_PAUSE_S)
    except (ValueError, OSError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: ValueError | OSError) -> AdapterFileError:
    reason = error.strerror if isinstance(error, OSError) else error
    return AdapterFileError(
        f"Cannot read {path}: {reason}; expected a complete safetensors file. Save or fetch "
        "the adapter again."
    )


def write_adapter_files(
    directory: Path, values: dict[str, Any], tensors: dict[str, Tensor]
) -> list[Path]:
    """Write both files atomically.

    A new directory appears with both files at once. In an existing one, both files are written
    beside the old ones and then moved into place one after the other.

    A killed process leaves the old adapter, the new one, or, within a moment of the second case,
    new tensors with the old configuration, which `read_adapter_files` detects.

    Returns: The paths written.

    Raises:
        OutputExistsError: `directory` is a file.
        AdapterStateError: A tensor is not finite or not floating-point.
    """
    if directory.is_file():
        raise OutputExistsError(
            f"Cannot save an adapter to {directory}: it is a file, expected a directory. Choose "
            "another path."
        )
    if directory.is_dir():
        _write(directory, values, tensors)
    else:
        with creating_directory(directory) as temporary:
            _write(temporary, values, tensors)
    return [directory / WEIGHTS_FILE, directory / CONFIG_FILE]


def _write(directory: Path, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    weights, config = directory / WEIGHTS_FILE, directory / CONFIG_FILE
    separate = _separate(tensors)
    require_savable(separate, str(weights))
    text = json.dumps(values, indent=2)
    with replacing_files(weights, config) as (new_weights, new_config):
        write_safetensors(new_weights, separate, _metadata(values))
        new_config.write_text(text + "\n", encoding="utf-8")


def weights_file_bytes(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """Return the size of the tensors file that `write_adapter_files` would write."""
    return safetensors_bytes(tensors, _metadata(values))


def _metadata(values: Mapping[str, Any]) -> dict[str, str]:
    return {"format": "pt", CONFIG_RECORD: json.dumps(values)}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU tensors that share no memory, as safetensors requires."""
    seen: set[int] = set()
    separate: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        made = tensor.detach().to("cpu").contiguous()
        if made.untyped_storage().data_ptr() in seen:
            made = made.clone()
        seen.add(made.untyped_storage().data_ptr())
        separate[key] = made
    return separate


def _directory(
    path: str | Path,
    allow_pickle: bool,
    revision: str | None,
    subfolder: str | None,
    token: str | bool | None,
) -> Path:
    """Return the directory of an adapter's files, fetched from the hub if necessary."""
    if is_hub_id(path):
        files = (CONFIG_FILE, WEIGHTS_FILE, *((PICKLE_FILE,) if allow_pickle else ()))
        return fetch_from_hub(str(path), files, revision, subfolder=subfolder, token=token)
    if revision is not None:
        raise ConfigError(
            f"Cannot load revision {revision!r} of {path}: it is not a hub repository, but only "
            "hub repositories have revisions. Leave the revision out, or name a hub id."
        )
    # os.path returns False for an invalid name, where Path raises.
    require_inside(subfolder)
    directory = Path(path) / (subfolder or "")
    if os.path.isdir(directory):
        return directory
    if os.path.isfile(directory):
        raise MissingFileError(
            f"{directory} is a file, expected the directory that holds {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}. Name {directory.parent} instead."
        )
    missing = directory
    while not os.path.isdir(missing.parent):
        missing = missing.parent
    which = "" if missing == directory else f": {missing} does not exist"
    near = did_you_mean(missing.name, [entry.name for entry in missing.parent.iterdir()])
    raise MissingFileError(
        f"There is no adapter directory {directory}{which}.{near} Check the path."
    )


def _missing_message(directory: Path, missing: list[str]) -> str:
    message = f"No {' and no '.join(missing)} in {directory}, expected both files of an adapter."
    inside = sorted(p.parent.name for p in directory.glob(f"*/{CONFIG_FILE}"))
    if inside:
        return f"{message} Sub-folders that hold an adapter: {', '.join(inside)}. Name one of them."
    if (directory / PICKLE_FILE).is_file():
        return (
            f"{message} {PICKLE_FILE} is a pickle, which can run code when read; if you trust it, "
            "convert it to safetensors with `lorakit convert --allow-pickle`."
        )
    return f"{message} Name the directory that holds them."

"""Reading and writing the two files of an adapter directory: safetensors, a pickle on request."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lorakit.adapters.peft_files.consistency import CONFIG_RECORD, differences, disagreement
from lorakit.adapters.peft_files.valid_tensors import load_pickle, require_savable, require_sound
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
    TensorFile,
    read_safetensors,
    safetensors_bytes,
    write_safetensors,
)
from lorakit.libraries.hub import fetch_from_hub, is_hub_id, require_inside

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"

_PATIENCE_S, _PAUSE_S = 5.0, 0.01
"""How long two files that do not agree are read again, as a save may be between them."""

_SETTLED_S = 2.0
"""Age after which no save can be between two files any more."""


class AdapterFiles(NamedTuple):
    """What the two files of an adapter hold."""

    values: dict[str, Any]
    """Of the configuration."""
    tensors: dict[str, Tensor]
    """By key, on the CPU."""
    where: str
    """The directory's name, for messages."""
    is_lorakit_s: bool
    """Whether lorakit wrote the tensors' file."""


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

    Both files come from one save, also where another process saves into the directory meanwhile:
    the tensors of a file that lorakit wrote say which configuration they belong to.

    Args:
        path: Of the directory, or a hub id.
        allow_pickle: Whether adapter_model.bin may be read where there is no
            adapter_model.safetensors; of tensors alone, whatever else is in it is refused.
        allow_edited_config: Whether adapter_config.json may say something else than it did when
            the tensors were saved.
        revision: Branch, tag or commit of a hub repository; None takes the newest.
        subfolder: Folder inside the directory or repository that holds the adapter.
        token: Of the hub, where the repository is private.

    Returns: What the two files hold.

    Raises:
        MissingFileError: The directory or one of its files is not there.
        AdapterFileError: A file is damaged, or the two are not from one save.
    """
    directory = _directory(path, allow_pickle, revision, subfolder, token)
    config_path, weights_path = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    if allow_pickle and not weights_path.is_file() and (directory / PICKLE_FILE).is_file():
        weights_path = directory / PICKLE_FILE
    missing = [file.name for file in (config_path, weights_path) if not file.is_file()]
    if missing:
        raise MissingFileError(_missing_message(directory, missing))
    end = time.monotonic() + _PATIENCE_S
    while True:
        # In this order: a save puts its configuration into place last, so that tensors from
        # before it cannot be read with the configuration from after it.
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
    require_sound(read.tensors, str(weights_path))
    return AdapterFiles(values, read.tensors, str(directory), CONFIG_RECORD in read.metadata)


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
    """Read a file of tensors by name: safetensors, or a pickle of tensors where that is allowed.

    Raises:
        AdapterFileError: The file is damaged, or a pickle that holds more than tensors or that
            was not allowed; or a tensor in it is not of floating point, or not finite.
    """
    tensors = _read_file(path, allow_pickle, time.monotonic() + _PATIENCE_S).tensors
    require_sound(tensors, str(path))
    return tensors


def _read_file(path: Path, allow_pickle: bool, end: float) -> TensorFile:
    """Read tensors; again where the file is written to meanwhile, until a time of the clock."""
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
        reason = error.strerror if isinstance(error, OSError) else error
        raise AdapterFileError(
            f"Cannot read {path}: {reason}; expected a complete safetensors file. Save or fetch "
            "the adapter again."
        ) from None


def write_adapter_files(
    directory: Path, values: dict[str, Any], tensors: dict[str, Tensor]
) -> list[Path]:
    """Write both files whole or not at all.

    A directory that is not there yet appears with both at once; in one that is, both files are
    written beside the old ones and then moved into place one right after the other.

    A process that is killed leaves the old adapter, the new one, or, for a moment of the second
    case, new tensors with the old configuration, which `read_adapter_files` tells apart.

    Returns: The paths written.

    Raises:
        OutputExistsError: `directory` is a file.
        AdapterStateError: A tensor is not finite, or not of floating point.
    """
    if directory.is_file():
        raise OutputExistsError(
            f"Cannot save an adapter to {directory}: there is a file of that name, expected a "
            "directory. Choose another path."
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
    """Return how large the file of tensors is that `write_adapter_files` would write."""
    return safetensors_bytes(tensors, _metadata(values))


def _metadata(values: Mapping[str, Any]) -> dict[str, str]:
    return {"format": "pt", CONFIG_RECORD: json.dumps(values)}


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU tensors that share no memory, as safetensors demands."""
    seen: set[int] = set()
    separate = {}
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
    """Return where an adapter's files lie, fetched from the hub if need be."""
    if is_hub_id(path):
        files = (CONFIG_FILE, WEIGHTS_FILE, *((PICKLE_FILE,) if allow_pickle else ()))
        return fetch_from_hub(str(path), files, revision, subfolder=subfolder, token=token)
    if revision is not None:
        raise ConfigError(
            f"Cannot load revision {revision!r} of {path}: it is not a hub repository, expected "
            "one where a revision is given. Leave the revision out, or name a hub id."
        )
    # os.path takes a name that no file system can hold for one that is not there.
    require_inside(subfolder)
    directory = Path(path) / (subfolder or "")
    if os.path.isdir(directory):
        return directory
    if os.path.isfile(directory):
        raise MissingFileError(
            f"{directory} is a file, expected the directory that holds {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}. Name {directory.parent} instead."
        )
    parent = directory.parent
    siblings = [p.name for p in parent.iterdir()] if os.path.isdir(parent) else []
    raise MissingFileError(
        f"There is no adapter directory {directory}.{did_you_mean(directory.name, siblings)}"
    )


def _missing_message(directory: Path, missing: list[str]) -> str:
    message = f"No {' and no '.join(missing)} in {directory}, expected both files of an adapter."
    inside = sorted(p.parent.name for p in directory.glob(f"*/{CONFIG_FILE}"))
    if inside:
        return f"{message} Sub-folders that hold an adapter: {', '.join(inside)}. Name one of them."
    if (directory / PICKLE_FILE).is_file():
        return (
            f"{message} {PICKLE_FILE} is a pickle, which can run code when read; if you trust it, "
            "turn it into safetensors with `lorakit convert --allow-pickle`."
        )
    return f"{message} Name the directory that holds them."

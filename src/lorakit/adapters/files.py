"""Reading and writing the two files of an adapter directory: safetensors, a pickle on request."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.atomic import appearing_directory, replacing_file
from lorakit.errors import (
    AdapterFileError,
    MissingFileError,
    OutputExistsError,
    did_you_mean,
)
from lorakit.hub import fetch_from_hub, is_hub_id

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"


def read_adapter_files(
    path: str | Path, *, allow_pickle: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """Read an adapter directory or hub repository.

    Args:
        path: Of the directory, or a hub id.
        allow_pickle: Whether adapter_model.bin may be read where there is no
            adapter_model.safetensors; of tensors alone, whatever else is in it is refused.

    Returns: The configuration's values, the tensors by key on the CPU, and the directory's name
        for messages.

    Raises:
        MissingFileError: The directory or one of its files is not there.
        AdapterFileError: A file is damaged.
    """
    directory = _directory(path, allow_pickle)
    config_path, weights_path = directory / CONFIG_FILE, directory / WEIGHTS_FILE
    if allow_pickle and not weights_path.is_file() and (directory / PICKLE_FILE).is_file():
        weights_path = directory / PICKLE_FILE
    missing = [file.name for file in (config_path, weights_path) if not file.is_file()]
    if missing:
        raise MissingFileError(_missing_message(directory, missing))
    try:
        values = json.loads(config_path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise AdapterFileError(
            f"Cannot read {config_path}: {error}; expected a JSON object. The file is damaged; "
            "save or fetch the adapter again."
        ) from None
    if not isinstance(values, dict):
        raise AdapterFileError(
            f"Cannot read {config_path}: got a {type(values).__name__}, expected a JSON object. "
            "Save or fetch the adapter again."
        )
    return values, read_tensors(weights_path, allow_pickle=allow_pickle), str(directory)


def read_tensors(path: Path, *, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Read a file of tensors by name: safetensors, or a pickle of tensors where that is allowed.

    Raises:
        AdapterFileError: The file is damaged, or a pickle that holds more than tensors or that
            was not allowed.
    """
    if path.suffix != ".safetensors":
        return _unpickled(path, allow_pickle)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(
            f"Cannot read {path}: {error}; expected a complete safetensors file. It is "
            "truncated or of another kind; save or fetch the adapter again."
        ) from None


def _unpickled(path: Path, allow_pickle: bool) -> dict[str, Tensor]:
    if not allow_pickle:
        raise AdapterFileError(
            f"Cannot read {path}: it is a pickle, expected safetensors. If you trust where it "
            "comes from, allow it (allow_pickle=True, or --allow-pickle on the command line)."
        )
    try:
        # weights_only builds tensors and plain containers, and calls nothing else.
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors share no class
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise AdapterFileError(
            f"Cannot read {path}: {reason}; expected a pickle of tensors and nothing else. Get the "
            "adapter as safetensors."
        ) from None
    if not isinstance(values, dict) or not all(isinstance(t, Tensor) for t in values.values()):
        raise AdapterFileError(
            f"Cannot read {path}: got a {type(values).__name__} of other things, expected tensors "
            "by name. Get the adapter as safetensors."
        )
    return values


def write_adapter_files(
    directory: Path, values: dict[str, Any], tensors: dict[str, Tensor]
) -> list[Path]:
    """Write both files whole or not at all.

    A directory that is not there yet appears with both at once; in one that is, both files are
    written beside the old ones and then moved into place one right after the other.

    Returns: The paths written.

    Raises:
        OutputExistsError: `directory` is a file.
    """
    if directory.is_file():
        raise OutputExistsError(
            f"Cannot save an adapter to {directory}: there is a file of that name, expected a "
            "directory. Choose another path."
        )
    if directory.is_dir():
        _write(directory, values, tensors)
    else:
        with appearing_directory(directory) as temporary:
            _write(temporary, values, tensors)
    return [directory / WEIGHTS_FILE, directory / CONFIG_FILE]


def _write(directory: Path, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    with (
        replacing_file(directory / CONFIG_FILE) as config_path,
        replacing_file(directory / WEIGHTS_FILE) as weights_path,
    ):
        save_file(_separate(tensors), weights_path, metadata={"format": "pt"})
        config_path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
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


def _directory(path: str | Path, allow_pickle: bool = False) -> Path:
    directory = Path(path)
    if directory.is_dir():
        return directory
    if directory.is_file():
        raise MissingFileError(
            f"{directory} is a file, expected the directory that holds {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}. Name {directory.parent} instead."
        )
    if is_hub_id(path):
        pickled = (PICKLE_FILE,) if allow_pickle else ()
        return fetch_from_hub(str(path), (CONFIG_FILE, WEIGHTS_FILE, *pickled))
    siblings = [p.name for p in directory.parent.iterdir()] if directory.parent.is_dir() else []
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

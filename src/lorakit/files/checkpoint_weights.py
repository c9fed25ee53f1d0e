"""The weights of a model or checkpoint, read one tensor at a time."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lorakit.errors import AdapterFileError, ConfigError, MissingFileError
from lorakit.files.json_files import POINTER_BYTES, read_json_object, require_no_pointer
from lorakit.libraries.foreign_code import load_pretrained
from lorakit.libraries.hub import fetch_from_hub, is_hub_id

_MOST_INDEX_BYTES = 2**26
_INDEX, _SINGLE, _CONFIG = "model.safetensors.index.json", "model.safetensors", "config.json"


class CheckpointWeights:
    """Tensors by name, with or without the prefix of the base model.

    Attributes:
        where: Name of the origin for error messages.
        recorded: Hub id or directory to record as the base of an adapter, if known.
        directory: Directory of the checkpoint; None for a model in memory.
    """

    def __init__(self, source: str | Path | nn.Module, revision: str | None = None) -> None:
        """Open a checkpoint directory, a hub repository or a model.

        Args:
            source: The directory, hub id or model; a model must have neither adapters nor
                quantized weights.
            revision: Commit of a hub repository; None takes the newest.

        Raises:
            MissingFileError: There is no safetensors checkpoint.
            AdapterFileError: A file is damaged.
        """
        self._tensors: dict[str, Tensor] = {}
        self._files: dict[str, Path] = {}
        self._opened: dict[Path, Any] = {}
        self.directory: Path | None = None
        if isinstance(source, nn.Module):
            self.where = f"this {type(source).__name__}"
            self.recorded = getattr(source, "name_or_path", None) or None
            self._tensors = source.state_dict()
        else:
            self.where = self.recorded = str(source)
            self.directory = _directory(source, revision)
            self._files = self._files_by_tensor(self.directory)

    def names(self) -> Iterator[str]:
        """Yield the stored names."""
        yield from self._tensors or self._files

    def stored_name(self, name: str, prefix: str) -> str | None:
        """Return the name under which a tensor is stored, or None if it is not stored.

        Args:
            name: The tensor's name in the model.
            prefix: Prefix of the base model in that model, such as "transformer"; checkpoints are
                written with or without it.
        """
        known = self._tensors or self._files
        candidates = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
        return next((candidate for candidate in candidates if candidate in known), None)

    def read(self, stored_name: str) -> Tensor:
        """Return one tensor on the CPU, in its stored dtype.

        Raises:
            AdapterFileError: The file is damaged.
        """
        if self._tensors:
            return self._tensors[stored_name].detach().cpu()
        file = self._files[stored_name]
        try:
            return self._handle(file).get_tensor(stored_name)
        except SafetensorError as error:
            raise _damage_error(f"{stored_name} in {file}", error) from None

    def _handle(self, file: Path) -> Any:
        """Return the open file; each is opened once, as its header takes longer than a tensor."""
        if file not in self._opened:
            try:
                with file.open("rb") as beginning:
                    require_no_pointer(beginning.read(POINTER_BYTES))
                self._opened[file] = safe_open(file, framework="pt")
            except (SafetensorError, OSError, ValueError) as error:
                raise _damage_error(str(file), error) from None
        return self._opened[file]

    def _files_by_tensor(self, directory: Path) -> dict[str, Path]:
        """Return each tensor's file by name."""
        index = directory / _INDEX
        if index.is_file():
            try:
                listed = read_json_object(index, _MOST_INDEX_BYTES).get("weight_map")
                if not isinstance(listed, dict):
                    raise ValueError("it has no weight_map")
                if not all(isinstance(file, str) for file in listed.values()):
                    raise ValueError("its weight_map has values that are not file names")
                return {name: directory / file for name, file in listed.items()}
            except ValueError as error:
                raise AdapterFileError(
                    f"Cannot read {index}: {error}, expected JSON with a weight_map. Save or fetch "
                    "the checkpoint again."
                ) from None
        single = directory / _SINGLE
        if not single.is_file():
            raise MissingFileError(
                f"No {_SINGLE} and no {_INDEX} in {directory}, expected a checkpoint in "
                "safetensors. Save the model with save_pretrained."
            )
        return dict.fromkeys(self._handle(single).keys(), single)

    def skeleton(self) -> Any:
        """Return the checkpoint's model on the meta device, without data.

        Raises:
            MissingFileError: There is no config.json.
            AdapterFileError: config.json is damaged.
            ConfigError: config.json does not name a model class of transformers.
        """
        import transformers

        directory = self.directory
        if directory is None or not (directory / _CONFIG).is_file():
            raise MissingFileError(
                f"No {_CONFIG} in {self.where}, expected a transformers checkpoint. Name the "
                "directory that holds it."
            )
        try:
            config = load_pretrained(transformers.AutoConfig, directory, trust_remote_code=False)
        except (OSError, ValueError) as error:
            if "trust_remote_code" in str(error):
                raise ConfigError(
                    f"Unknown model class in {directory / _CONFIG}: it needs code from the "
                    "checkpoint, expected a class of transformers. Load the model yourself and "
                    "pass it instead of its directory."
                ) from None
            raise AdapterFileError(
                f"Cannot read {directory / _CONFIG}: {str(error).splitlines()[0]}; expected the "
                "configuration of a model of transformers. Save or fetch the checkpoint again."
            ) from None
        name = class_name_of(config.to_dict())
        model_class = getattr(transformers, name or "", None)
        if model_class is None:
            raise ConfigError(
                f"Unknown model class in {directory / _CONFIG}: got architectures="
                f"{config.architectures!r}, expected a class of transformers. Load the model "
                "yourself and pass it instead of its directory."
            )
        with torch.device("meta"):
            return model_class(config)


def class_name_of(config: Mapping[str, Any]) -> str | None:
    """Return the name of a checkpoint's class in transformers, or None if it is unknown.

    Args:
        config: The config.json; one that names no class is taken for a causal language model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = config.get("architectures")
    if not named:
        found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(config.get("model_type")))
        return found if isinstance(found, str) else None
    return named[0] if isinstance(named, list) and isinstance(named[0], str) else None


def _directory(source: str | Path, revision: str | None) -> Path:
    if os.path.isdir(source):
        return Path(source)
    if is_hub_id(source, is_base=True):
        files = (_CONFIG, _INDEX, "model*.safetensors")
        return fetch_from_hub(str(source), files, revision, what="base model")
    raise MissingFileError(
        f"There is no checkpoint directory {source}, expected one with {_SINGLE}. Check the path."
    )


def _damage_error(what: str, error: Exception) -> AdapterFileError:
    return AdapterFileError(
        f"Cannot read {what}: {error}; expected a complete safetensors file. Save or fetch the "
        "checkpoint again."
    )

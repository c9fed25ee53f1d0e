"""Base models to choose from, and what each is, from its configuration and file headers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.config import TaskType
from lorakit.errors import ConfigError
from lorakit.files.json_files import read_json_object
from lorakit.models.local_paths import check_local_path
from lorakit.runs.adapters import StoredTensor, read_tensor_header
from lorakit.runs.base_memory import config_file_of
from lorakit.runs.new_recipe import positions_in
from lorakit.runs.paths import visible_folders

_WEIGHTS = (".safetensors", ".bin")
_MOST_BASES = 200


@dataclass(frozen=True)
class ModuleKind:
    """Layers of a base that have the same last name and shape."""

    name: str
    shape: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class BaseModel:
    """What a base model is."""

    name: str
    """The value of `model` in a recipe."""
    kind: str
    """The model type of its configuration, such as "llama"."""
    architecture: str
    """The class that was saved, such as "LlamaForCausalLM"; empty if unknown."""
    layers: int | None
    hidden_size: int | None
    vocabulary: int | None
    positions: int | None
    size_bytes: int
    """Size of the weight files."""
    parameters: int | None
    """Number of parameters; None if the files are not safetensors."""
    dtypes: tuple[str, ...]
    modules: tuple[ModuleKind, ...]
    """Layers with a matrix of weights, the most frequent first."""
    has_chat_template: bool

    @property
    def tasks(self) -> tuple[TaskType, ...]:
        """Tasks that models of this kind are trained for, the most usual first."""
        if self.architecture.endswith("ForConditionalGeneration"):
            return (TaskType.SEQ_2_SEQ_LM,)
        if self.architecture.endswith(("ForCausalLM", "LMHeadModel")):
            return (TaskType.CAUSAL_LM, TaskType.SEQ_CLS, TaskType.TOKEN_CLS)
        return (TaskType.SEQ_CLS, TaskType.TOKEN_CLS)


def find_bases(root: Path) -> list[str]:
    """Return the base models below a folder, as paths relative to it."""
    found: list[str] = []
    for folder, names in visible_folders(root):
        is_base = "config.json" in names and "adapter_config.json" not in names
        if is_base and any(name.endswith(_WEIGHTS) for name in names):
            found.append(folder.relative_to(root).as_posix())
        if len(found) == _MOST_BASES:
            break
    return found


def cached_bases() -> list[str]:
    """Return the hub ids of the models that have been downloaded to this machine."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folders = sorted(Path(HF_HUB_CACHE).glob("models--*/snapshots/*/config.json"))
    names = {
        folder.parents[2].name.removeprefix("models--").replace("--", "/") for folder in folders
    }
    return sorted(names)[:_MOST_BASES]


def describe_base(name: str, root: Path) -> BaseModel | None:
    """Return what a base model is; reads its configuration and the headers of its weights.

    Args:
        name: The value of `model` in a recipe: a path relative to `root`, or a hub id.
        root: The folder to which paths are relative.

    Returns: The description, or None for a hub id that is not on this machine.

    Raises:
        ConfigError: The configuration is damaged, or the folder is that of an adapter.
        MissingFileError: There is no such folder, or it is not a model.
    """
    check_local_path(name, "model", root)
    path = root / Path(name).expanduser()
    config_file = path / "config.json" if path.is_dir() else config_file_of(name)
    if config_file is None:
        return None
    try:
        config = read_json_object(config_file)
    except ValueError as error:
        raise ConfigError(
            f"Cannot read {config_file}: {error}, expected the configuration of a model of "
            "transformers. Save or fetch the checkpoint again."
        ) from None
    return _describe(name, config, config_file.parent)


def _describe(name: str, config: Mapping[str, Any], folder: Path) -> BaseModel:
    inner = config.get("text_config")
    sizes = {**config, **inner} if isinstance(inner, dict) else config
    architectures = config.get("architectures")
    named = architectures[0] if isinstance(architectures, list) and architectures else ""
    files = [path for path in sorted(folder.iterdir()) if path.name.endswith(_WEIGHTS)]
    files = [path for path in files if path.suffix == ".safetensors"] or files
    tensors = _tensors(path for path in files if path.suffix == ".safetensors")
    return BaseModel(
        name=name,
        kind=str(config.get("model_type") or "unknown"),
        architecture=str(named),
        layers=_size(sizes, "num_hidden_layers", "n_layer", "num_layers", "n_layers"),
        hidden_size=_size(sizes, "hidden_size", "n_embd", "d_model", "dim"),
        vocabulary=_size(sizes, "vocab_size"),
        positions=positions_in(sizes),
        size_bytes=sum(path.stat().st_size for path in files),
        parameters=sum(one.elements for one in tensors.values()) or None,
        dtypes=tuple(sorted({one.dtype for one in tensors.values()})),
        modules=_modules(tensors),
        has_chat_template=_has_chat_template(folder),
    )


def _size(config: Mapping[str, Any], *names: str) -> int | None:
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def _modules(tensors: Mapping[str, StoredTensor]) -> tuple[ModuleKind, ...]:
    kinds = Counter(
        (path.removesuffix(".weight").rpartition(".")[2], one.shape)
        for path, one in tensors.items()
        if path.endswith(".weight") and len(one.shape) > 1
    )
    return tuple(ModuleKind(*kind, count) for kind, count in kinds.most_common())


def _tensors(files: Iterable[Path]) -> dict[str, StoredTensor]:
    """Return the tensors that the headers of safetensors files name.

    A file whose header cannot be read is left out: training says what is wrong with it.
    """
    found: dict[str, StoredTensor] = {}
    for path in files:
        with suppress(OSError, ValueError):
            found |= read_tensor_header(path)
    return found


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file():
        return True
    try:
        text = (folder / "tokenizer_config.json").read_text(encoding="utf-8")
        return bool(json.loads(text).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False

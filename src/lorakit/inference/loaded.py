"""A trained adapter on its base model, ready for inference."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorakit.adapters import Adapter, fit_vocabulary
from lorakit.adapters.inference_settings import SETTINGS_FILE, InferenceSettings
from lorakit.config import TaskType
from lorakit.errors import AdapterMismatchError, ConfigError
from lorakit.injection import add_adapter, disable_adapters
from lorakit.libraries.hub import fetch_from_hub, is_hub_id
from lorakit.models.base_digest import are_different, base_digest
from lorakit.models.pretrained import (
    auto_model,
    label_options,
    load_model,
    load_tokenizer,
    model_limit,
    set_padding,
)
from lorakit.quantization.devices import find_device
from lorakit.recipes.recipe import Recipe
from lorakit.recipes.run_directory import RunDirectory, find_adapter

TASKS_WITH_LABELS = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS)
_HEAD_WEIGHT = re.compile(r"(^|\.)(score|classifier|out_proj|output)\.weight$")
_DEFAULT_MAX_LENGTH = 512
TOKENIZER_FILE = "tokenizer_config.json"
_HUB_FILES = ("*.json", "adapter_model.safetensors", "*.jinja", "*.model", "*.txt")


@dataclass(frozen=True)
class LoadedModel:
    """A base model with one adapter, its tokenizer and its settings."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task_type: TaskType
    labels: tuple[str, ...] | None
    """Class or tag names by id."""
    settings: InferenceSettings
    base: str
    """Hub id or directory of the base model."""
    note: str | None = None
    """That a base which the caller named has other weights than that of the training."""

    @property
    def max_length(self) -> int:
        """Number of tokens that inputs are truncated to: as in training, or the model's limit."""
        limit = model_limit(self.model) or _DEFAULT_MAX_LENGTH
        return self.settings.max_length or min(limit, _DEFAULT_MAX_LENGTH)

    @contextmanager
    def inference_context(self, use_base: bool) -> Iterator[None]:
        """Disable gradients, and the adapter too if `use_base` is true, inside the block."""
        with torch.no_grad(), disable_adapters(self.model) if use_base else nullcontext():
            yield

    def require_task(self, action: str, *expected: TaskType) -> None:
        """Refuse an action the adapter was not trained for.

        Raises:
            ConfigError: The adapter is for another task.
        """
        if self.task_type not in expected:
            raise ConfigError(
                f"This adapter cannot {action}: got task {self.task_type}, expected "
                f"{' or '.join(expected)}. Use an adapter that was trained for it."
            )


@dataclass(frozen=True)
class AdapterWithBase:
    """What the files of an adapter, and whoever uses it, say about its base."""

    directory: Path
    adapter: Adapter
    settings: InferenceSettings
    task_type: TaskType
    base: str
    """Hub id or directory of the base model."""
    key: str
    """Where the base is named, for errors."""
    hub_options: dict[str, Any]
    """The base's revision, and whether its code may run."""

    def load_base(self, **options: Any) -> PreTrainedModel:
        """Load the base with the given options of `load_model`."""
        return load_model(
            auto_model(self.task_type),
            self.base,
            key=self.key,
            seed=self.settings.seed,
            trained_in_full=self.adapter.config.modules_to_save,
            **self.hub_options,
            **options,
        )


def find_base(
    path: str | Path, base: str | None, option: str, *, trust_remote_code: bool = False
) -> AdapterWithBase:
    """Read an adapter, and find the base that it is used with.

    Args:
        path: A run directory, an adapter or checkpoint directory, or the hub id of an adapter.
        base: Base model; None takes the one that the adapter names.
        option: Option of the command line that names a base.
        trust_remote_code: As for `load_for_inference`.

    Raises:
        MissingFileError: The adapter does not exist.
        AdapterFileError: A file of the adapter is damaged.
        AdapterMismatchError: The base that it names has other weights now.
        ConfigError: The adapter names no base, or no task.
    """
    directory, recipe = locate_adapter(path)
    adapter = Adapter.load(directory)
    settings = InferenceSettings.load(companions_of(directory))
    config_file = directory / "adapter_config.json"
    task_type = adapter.config.task_type or settings.task_type
    if task_type is None:
        raise ConfigError(
            f"No task in {config_file}: got null in task_type, expected one of "
            f"{', '.join(TaskType)}. Write it into the file."
        )
    name = base or adapter.base_model
    if name is None:
        raise ConfigError(
            f"No base model in {config_file}: got null in base_model_name_or_path, expected a hub "
            f"id or a directory. Name the base yourself ({option} on the command line)."
        )
    of_run = recipe if base is None else None
    revision = None if of_run is None else of_run.revision
    trusted = trust_remote_code or (of_run is not None and of_run.trust_remote_code)
    if base is None:
        require_weights_of_training(settings, name, revision, config_file)
    key = option if base else f"base_model_name_or_path of {config_file}"
    options = {"revision": revision, "trust_remote_code": trusted}
    return AdapterWithBase(directory, adapter, settings, task_type, name, key, options)


def load_for_inference(
    path: str | Path,
    base: str | None = None,
    *,
    dtype: str | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    unquantized: bool = False,
) -> LoadedModel:
    """Load a run's adapter, or any adapter in PEFT's layout, on its base model.

    The tokenizer and chat template come from the adapter's directory if it has them; labels and
    other settings of the training come from its `lorakit.json`.

    Args:
        path: A run directory, an adapter or checkpoint directory, or the hub id of an adapter.
        base: Base model; None takes the one the adapter names.
        dtype: dtype of the base weights; None takes that of the training, else of the checkpoint.
        device: None takes the accelerator if there is one, else the CPU.
        trust_remote_code: Whether code that comes with the base or the tokenizer may run. Code of
            the base that a run was trained on may also run if the run's recipe allows it.
        unquantized: Whether to load the base as it is saved, even if it was quantized in training.

    Raises:
        MissingFileError: The adapter or the base does not exist.
        AdapterFileError: A file of the adapter is damaged.
        AdapterMismatchError: The adapter was made for another base, or the base that it names has
            other weights now.
        ConfigError: The adapter names no base, or no task.
    """
    source = find_base(path, base, "--base-model", trust_remote_code=trust_remote_code)
    adapter, settings, task_type = source.adapter, source.settings, source.task_type
    note = None
    if base is not None and _recorded_digest(settings) is not None:
        note = note_on_weights(settings, base, base_digest(base))
    saved = saved_tokenizer(source.directory)
    if saved is not None:
        trusted = source.hub_options["trust_remote_code"]
        tokenizer = load_tokenizer(
            str(saved), key=str(saved), is_adapter=True, trust_remote_code=trusted
        )
    else:
        tokenizer = load_tokenizer(source.base, key=source.key, **source.hub_options)
    place: Any = find_device(device)
    quantization = None if unquantized else settings.quantization
    if dtype is not None and quantization is not None:
        quantization = quantization.model_copy(update={"compute_dtype": dtype})
    model = source.load_base(
        has_head=task_type in TASKS_WITH_LABELS,
        dtype=dtype or settings.dtype or "auto",
        quantization=quantization,
        device=place,
        **_label_options(task_type, settings, adapter),
    )
    set_padding(model, tokenizer)
    fit_vocabulary(model, adapter)
    add_adapter(model, adapter, trainable=False)
    model.to(place).eval()
    labels = _labels_of(model) if task_type in TASKS_WITH_LABELS else None
    return LoadedModel(model, tokenizer, task_type, labels, settings, source.base, note)


def require_weights_of_training(
    settings: InferenceSettings, name: str, revision: str | None, source: Path
) -> None:
    """Refuse the base that an adapter names if its weights are not those of the training.

    Args:
        settings: The adapter's settings.
        name: Hub id or directory of the base.
        revision: Branch, tag or commit of a hub model.
        source: The file that names the base.

    Raises:
        AdapterMismatchError: They are recorded, and others.
    """
    if _recorded_digest(settings) is not None:
        require_digest_of_training(settings, name, base_digest(name, revision), source)


def require_digest_of_training(
    settings: InferenceSettings, name: str, digest: str | None, source: Path
) -> None:
    """Refuse the base that an adapter names if its digest is not that of the training.

    Args:
        settings: The adapter's settings.
        name: Hub id or directory of the base.
        digest: The digest of its weights; None if it is not known.
        source: The file that names the base.

    Raises:
        AdapterMismatchError: It is recorded, and another.
    """
    recorded = _recorded_digest(settings)
    if are_different(recorded, digest):
        raise AdapterMismatchError(
            f"The base '{name}' in {source} has other weights than in training: got the digest "
            f"{str(digest)[:12]}, expected {str(recorded)[:12]}. Restore them, or name another "
            "base with these weights."
        )


def note_on_weights(settings: InferenceSettings, name: str, digest: str | None) -> str | None:
    """Return a note if a base that the user chose has other weights than that of the training.

    Args:
        settings: The adapter's settings.
        name: Hub id or directory of the base.
        digest: The digest of its weights; None if it is not known.
    """
    recorded = _recorded_digest(settings)
    if not are_different(recorded, digest):
        return None
    return (
        f"'{name}' has other weights than the base of the training: the digest "
        f"{str(digest)[:12]}, not {str(recorded)[:12]}."
    )


def _recorded_digest(settings: InferenceSettings) -> str | None:
    return None if settings.lineage is None else settings.lineage.base_digest


def locate_adapter(path: str | Path) -> tuple[Path, Recipe | None]:
    """Return the adapter's directory, downloaded from the hub if needed, and its run's recipe.

    Raises:
        MissingFileError: There is no adapter at `path`.
    """
    if is_hub_id(path):
        return fetch_from_hub(str(path), _HUB_FILES), None
    return find_adapter(path)


def companions_of(directory: Path) -> Path:
    """Return the directory of an adapter's tokenizer and settings.

    For a checkpoint without them it is its run's adapter or, before the run has one, the copy of
    the adapter that the run started from.
    """
    if not directory.name.startswith("checkpoint-") or (directory / SETTINGS_FILE).is_file():
        return directory
    run = RunDirectory(directory.parent)
    return next((place for place in (run.adapter, run.start_from) if place.is_dir()), directory)


def saved_tokenizer(directory: Path) -> Path | None:
    """Return the directory of the tokenizer that was saved with an adapter, or None."""
    companions = companions_of(directory)
    return companions if (companions / TOKENIZER_FILE).is_file() else None


def _label_options(
    task_type: TaskType, settings: InferenceSettings, adapter: Adapter
) -> dict[str, Any]:
    """Return the label options for the base: the labels of the training, else the head's number.

    A head that the adapter does not have is the base's, with the base's labels.
    """
    if task_type not in TASKS_WITH_LABELS:
        return {}
    if settings.labels is not None:
        return label_options(settings.labels, settings.problem_type)
    sizes = [
        tensor.shape[0]
        for key, tensor in adapter.replaced.items()
        if _HEAD_WEIGHT.search(key) and tensor.ndim == 2
    ]
    return {"num_labels": sizes[-1]} if sizes else {}


def _labels_of(model: PreTrainedModel) -> tuple[str, ...]:
    names: Any = model.config.id2label
    return tuple(names[index] for index in sorted(names))

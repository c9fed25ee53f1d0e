"""The base of a server, loaded once for each task; tasks share the memory of its weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from lorakit.adapters import Adapter
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.adapters.peft_files.files import CONFIG_FILE
from lorakit.config import QuantizationConfig, TaskType
from lorakit.data.tokenizers import pad_id
from lorakit.inference.loaded import note_on_weights, require_digest_of_training
from lorakit.models.base_digest import base_digest
from lorakit.models.loading_problems import loading_error
from lorakit.models.local_paths import check_local_path
from lorakit.models.pretrained import (
    auto_model,
    fresh_modules,
    label_options,
    load_model,
    load_tokenizer,
)
from lorakit.models.skeleton import model_config
from lorakit.quantization.devices import find_device

TASKS_WITH_LABELS = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS)

_log = logging.getLogger("lorakit.serving")

_TASK_OF_CLASS = {
    "ForSequenceClassification": TaskType.SEQ_CLS,
    "ForTokenClassification": TaskType.TOKEN_CLS,
    "ForConditionalGeneration": TaskType.SEQ_2_SEQ_LM,
}


class ModelKind(NamedTuple):
    """What a loaded model is for; adapters of one kind share it.

    Attributes:
        task: The task.
        labels: Number of labels of its head; None for a task without labels.
    """

    task: TaskType
    labels: int | None = None

    def __str__(self) -> str:
        return str(self.task) + ("" if self.labels is None else f" with {self.labels} labels")


@dataclass(frozen=True)
class BaseSource:
    """Where a base comes from, and how it is loaded.

    Attributes:
        name: Hub id or directory.
        key: What names it, for errors.
        dtype: dtype of the weights; "auto" takes the checkpoint's.
        quantization: How to quantize it; None keeps the saved precision.
        revision: Branch, tag or commit of the hub.
        seed: Seed of weights that the checkpoint lacks.
        device: None takes the accelerator if there is one, else the CPU.
        trust_remote_code: Whether code that comes with it may run.
    """

    name: str
    key: str = "BASE"
    dtype: str = "auto"
    quantization: QuantizationConfig | None = None
    revision: str | None = None
    seed: int = 42
    device: str | None = None
    trust_remote_code: bool = False

    def is_named(self, name: str) -> bool:
        """Return whether a hub id or a directory is that of this base."""
        return same_place(name) == same_place(self.name)

    @property
    def hub_options(self) -> dict[str, Any]:
        """Options of every `from_pretrained`."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


@dataclass(frozen=True)
class LoadedBase:
    """The base for one kind.

    Attributes:
        model: The model, without adapters.
        tokenizer: The base's tokenizer.
        labels: Names of the labels of its head.
        answers_alone: Whether it does the task without an adapter: the checkpoint has the head, and
            a model that is to continue texts was not trained to fill gaps.
        shared_bytes: Bytes of weights that it shares with another kind.
        source: Where it comes from.
        digest: Digest of its weights, see `base_digest`; None if it is not known.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    answers_alone: bool
    shared_bytes: int
    source: BaseSource
    digest: str | None

    def require_weights_of_training(
        self, name: str, adapter: Adapter, settings: InferenceSettings, directory: Path
    ) -> None:
        """Refuse an adapter that names this base, but was trained on other weights.

        One that names another base is used on this one because the user says so; the log notes it.

        Args:
            name: Name of the adapter.
            adapter: The adapter.
            settings: Its settings.
            directory: The directory of its files.

        Raises:
            AdapterMismatchError: The weights are others.
        """
        base = self.source.name
        if adapter.base_model is not None and self.source.is_named(adapter.base_model):
            require_digest_of_training(settings, base, self.digest, directory / CONFIG_FILE)
        elif note := note_on_weights(settings, base, self.digest):
            _log.warning("Adapter %r: %s", name, note)


def same_place(name: str) -> str:
    """Return what two names of the same base have in common: a hub id, or a real directory."""
    return os.path.realpath(name) if os.path.isdir(name) else name


def kind_of_base(source: BaseSource) -> ModelKind:
    """Return the kind that a base is saved as.

    Raises:
        MissingFileError: The base does not exist.
        ConfigError: Its configuration cannot be read.
    """
    return _kind_of(_config(source))


def needs_adapter(source: BaseSource) -> bool:
    """Return whether a base has no task alone, like BERT, which is trained to fill gaps.

    Raises:
        MissingFileError: The base does not exist.
        ConfigError: Its configuration cannot be read.
    """
    return _fills_gaps(_config(source))


def _fills_gaps(config: Any) -> bool:
    known = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    writes = _class_name(config).endswith(("ForCausalLM", "LMHeadModel"))
    return _kind_of(config).task is TaskType.CAUSAL_LM and known and not writes


def _kind_of(config: Any) -> ModelKind:
    for ending, task in _TASK_OF_CLASS.items():
        if _class_name(config).endswith(ending):
            return ModelKind(task, config.num_labels if task in TASKS_WITH_LABELS else None)
    return ModelKind(TaskType.SEQ_2_SEQ_LM if config.is_encoder_decoder else TaskType.CAUSAL_LM)


def _config(source: BaseSource) -> Any:
    check_local_path(source.name, source.key)
    try:
        return model_config(source.name, source.hub_options)
    except (OSError, ValueError, KeyError) as error:
        raise loading_error(source.name, source.key, "model", error) from error


def _class_name(config: Any) -> str:
    return next(iter(config.architectures or []), "")


def load_base(
    source: BaseSource,
    kind: ModelKind,
    *,
    labels: Sequence[str] | None = None,
    trained_in_full: Sequence[str] = (),
    loaded: Sequence[PreTrainedModel] = (),
) -> LoadedBase:
    """Load a base for a kind.

    Args:
        source: The base.
        kind: The kind.
        labels: Names of its labels, if the base is saved as another kind; None numbers them.
        trained_in_full: Modules that adapters replace, which are not quantized.
        loaded: Models of the same base whose weights it shares.

    Raises:
        MissingFileError: The base does not exist.
        ConfigError: It cannot do the task.
        QuantizationError: It cannot be quantized.
    """
    tokenizer = load_tokenizer(source.name, key=source.key, **source.hub_options)
    device = find_device(source.device)
    with_head = kind.task in TASKS_WITH_LABELS
    options: dict[str, Any] = {}
    if with_head and kind != kind_of_base(source):  # else its head keeps its labels
        if labels is not None:
            options = label_options(labels)
        elif kind.labels is not None:
            options = {"num_labels": kind.labels}
    model = load_model(
        auto_model(kind.task),
        source.name,
        key=source.key,
        seed=source.seed,
        has_head=with_head,
        dtype=source.dtype,
        quantization=source.quantization,
        trained_in_full=trained_in_full,
        device=device,
        **source.hub_options,
        **options,
    )
    digest = base_digest(source.name, source.revision)
    model.config.get_text_config().pad_token_id = pad_id(tokenizer)
    model.to(device).eval().requires_grad_(False)  # type: ignore[arg-type]  # `to` is overloaded
    names: Any = model.config.id2label
    return LoadedBase(
        model,
        tokenizer,
        tuple(str(names[index]) for index in sorted(names)) if with_head else (),
        not (fresh_modules(model) if with_head else _fills_gaps(model.config)),
        sum(share_weights(model, other) for other in loaded),
        source,
        digest,
    )


def share_weights(model: nn.Module, other: nn.Module) -> int:
    """Replace each weight of a model by an equal one of the same name in another model.

    Bases are never written to, so two models may hold the same tensors.

    Returns: The number of bytes that are now shared.
    """
    theirs = {
        f"{path}.{name}": parameter
        for path, module in other.named_modules()
        for name, parameter in module._parameters.items()
    }
    shared = 0
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            same = theirs.get(f"{path}.{name}")
            if parameter is same or type(parameter) is not nn.Parameter or same is None:
                continue
            looks_alike = type(same) is nn.Parameter and (same.shape, same.dtype, same.device) == (
                parameter.shape,
                parameter.dtype,
                parameter.device,
            )
            if looks_alike and torch.equal(same, parameter):
                module._parameters[name] = same
                shared += same.nbytes
    return shared

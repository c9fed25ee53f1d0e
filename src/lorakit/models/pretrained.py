"""Load a base model and its tokenizer, and explain failures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from lorakit.config import ProblemType, QuantizationConfig, TaskType
from lorakit.errors import ConfigError, QuantizationError, TargetError
from lorakit.injection.selection.heads import task_heads
from lorakit.layers.frozen_linear import speed_up_frozen_layers_
from lorakit.libraries.foreign_code import load_pretrained
from lorakit.libraries.logs import logging_errors_only
from lorakit.models.loading_problems import (
    DAMAGED_FILE_ERRORS,
    check_missing,
    loading_error,
    require_vocabulary,
)
from lorakit.models.local_paths import check_local_path
from lorakit.models.skeleton import (
    compute_odd_experts_one_by_one,
    drop_none,
    model_config,
)
from lorakit.quantization.load import is_quantized, load_as_quantized, load_quantized

_UNLIMITED = 10**9
"""Tokenizers without a limit have a `model_max_length` of 10^30."""

_CONFIG_OPTIONS = ("num_labels", "id2label", "label2id", "problem_type")
"""Options of the model's configuration; the weights are loaded without them."""

_fresh: WeakKeyDictionary[nn.Module, tuple[str, ...]] = WeakKeyDictionary()


def auto_model(task_type: TaskType) -> Any:
    """Return the transformers class that loads a base model for a task type."""
    return {
        TaskType.CAUSAL_LM: AutoModelForCausalLM,
        TaskType.SEQ_CLS: AutoModelForSequenceClassification,
        TaskType.TOKEN_CLS: AutoModelForTokenClassification,
        TaskType.SEQ_2_SEQ_LM: AutoModelForSeq2SeqLM,
    }[task_type]


def label_options(
    labels: Sequence[str] | None, problem_type: ProblemType | None = None
) -> dict[str, Any]:
    """Return the options of `from_pretrained` that set a model's labels.

    Args:
        labels: Names of the head's outputs; None leaves those of the checkpoint.
        problem_type: What a text classifier's head predicts; None lets transformers infer it.
    """
    if labels is None:
        return {}
    kind = {} if problem_type is None else {"problem_type": problem_type}
    return kind | {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def load_local_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """Return a model's tokenizer if it is on this machine and needs no custom code, else None."""
    try:
        with logging_errors_only():
            return load_pretrained(
                AutoTokenizer, name, trust_remote_code=False, local_files_only=True
            )
    except (OSError, ValueError, ImportError):
        return None


def load_tokenizer(
    name: str,
    *,
    key: str = "model",
    is_adapter: bool = False,
    trust_remote_code: bool = False,
    **options: Any,
) -> PreTrainedTokenizerBase:
    """Load a tokenizer and make sure that it can pad.

    A tokenizer without a padding token pads with its end-of-text token. Padding never counts in the
    loss, because every collator here masks it by position and not by its id.

    Args:
        name: Hub id or local directory.
        key: The recipe key or file that has the name, for errors.
        is_adapter: Whether the directory is that of an adapter: a tokenizer without a model.
        trust_remote_code: Whether code that comes with the tokenizer may run.
        options: Options of `AutoTokenizer.from_pretrained`; None values are dropped.

    Raises:
        MissingFileError: The model does not exist, or has no tokenizer or none with a vocabulary.
        ConfigError: The tokenizer has neither a padding nor an end-of-text token.
    """
    if not is_adapter:
        check_local_path(name, key)
    try:
        tokenizer = load_pretrained(
            AutoTokenizer, name, trust_remote_code=trust_remote_code, **drop_none(options)
        )
    except Exception as error:  # the tokenizers library raises plain exceptions
        raise loading_error(name, key, "tokenizer", error) from error
    require_vocabulary(tokenizer, name, key)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                f"The tokenizer of '{name}' in {key} cannot pad: it has no pad_token, and no "
                "eos_token to use instead. Save it with a pad_token and name that directory."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(
    auto_class: Any,
    name: str,
    *,
    seed: int,
    has_head: bool,
    key: str = "model",
    quantization: QuantizationConfig | None = None,
    trained_in_full: Sequence[str] = (),
    device: torch.device | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> PreTrainedModel:
    """Load a base model for a task.

    Args:
        auto_class: The auto class, such as `AutoModelForCausalLM`.
        name: Hub id or local directory.
        seed: Seed for weights that the checkpoint lacks, such as a new head.
        has_head: Whether the task has its own head (a classifier), which the checkpoint may lack
            or have for other labels.
        key: The recipe key or file that has the name, for errors.
        quantization: How to quantize the model; None keeps the saved precision.
        trained_in_full: Names of modules that are not quantized, because an adapter trains them.
        device: Device of a quantized model; None takes the accelerator if there is one.
        trust_remote_code: Whether code that comes with the model may run.
        options: Options of `from_pretrained`; None values are dropped.

    Raises:
        MissingFileError: The model does not exist or has no weights.
        ConfigError: The model cannot do the task, or its checkpoint lacks weights of the body.
        QuantizationError: It cannot be quantized as asked; see `load_quantized`.
    """
    check_local_path(name, key)
    with torch.random.fork_rng(), logging_errors_only():
        torch.manual_seed(seed)
        try:
            config = model_config(name, {**options, "trust_remote_code": trust_remote_code})
            given: dict[str, Any] = {
                "trust_remote_code": trust_remote_code,
                "ignore_mismatched_sizes": has_head,
                **{
                    key: value
                    for key, value in drop_none(options).items()
                    if key not in _CONFIG_OPTIONS
                },
            }
            if quantization is not None:
                model, info = load_quantized(
                    auto_class,
                    name,
                    quantization,
                    model_config=config,
                    trained_in_full=trained_in_full,
                    device=device,
                    **given,
                )
            elif is_quantized(config):
                model, info = load_as_quantized(
                    auto_class, name, config, trained_in_full, device, given
                )
            else:
                model, info = load_pretrained(
                    auto_class, name, config=config, output_loading_info=True, **given
                )
        except (QuantizationError, TargetError):
            raise
        except (OSError, ValueError, KeyError, RuntimeError, *DAMAGED_FILE_ERRORS) as error:
            raise loading_error(name, key, "model", error, auto_class) from error
    missing = set(info["missing_keys"])
    missing |= {entry[0] for entry in info["mismatched_keys"]}
    check_missing(model, sorted(missing), name, key, has_head)
    fresh = dict.fromkeys(key.rpartition(".")[0] for key in sorted(missing))
    remember_fresh_modules(model, tuple(fresh))
    compute_odd_experts_one_by_one(model)
    speed_up_frozen_layers_(model)
    return model


def fresh_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of the modules whose weights the checkpoint did not have."""
    return _fresh.get(model, ())


def remember_fresh_modules(model: nn.Module, paths: Sequence[str]) -> None:
    """Record which modules of a model have weights that its checkpoint did not have."""
    _fresh[model] = tuple(paths)


def initialize_fresh_weights(model: PreTrainedModel, seed: int) -> None:
    """Initialize again the weights that the checkpoint did not have, as `load_model` does.

    Args:
        model: A loaded base.
        seed: The seed; the result has the same bits as loading the base with it.
    """
    fresh: list[Any] = [model.get_submodule(path) for path in fresh_modules(model)]
    every: Any = model.modules()
    for module in every:
        module._is_hf_initialized = module not in fresh  # transformers skips initialized modules
    for module in fresh:
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.initialize_weights()


def fresh_outside_head(model: nn.Module) -> tuple[str, ...]:
    """Return the freshly initialized modules outside the task's head.

    An adapter must save them (a BERT pooler, for example): loading the base again would initialize
    them with other weights.
    """
    heads = task_heads(model)
    return tuple(
        path
        for path in fresh_modules(model)
        if not any(path == head or path.startswith(f"{head}.") for head in heads)
    )


def set_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set a model's padding token to its tokenizer's, and the side that a whole text is padded on.

    A tokenizer may be saved to pad on the left, as batches of prompts that are continued need it.
    Models that read whole texts count positions from there, so that padding would move the text.
    """
    config: Any = model.config
    pad: Any = tokenizer.pad_token_id
    config.get_text_config().pad_token_id = pad
    if model.can_generate() and model.generation_config is not None:
        model.generation_config.pad_token_id = pad
    if config.is_encoder_decoder or not model.can_generate():
        reads_last_token = getattr(config, "summary_type", None) == "last"  # XLNet
        tokenizer.padding_side = "left" if reads_last_token else "right"


def model_limit(model: PreTrainedModel) -> int | None:
    """Return the maximum number of tokens of a model, or None without a limit.

    Learned position tables that reserve a padding row (RoBERTa) have fewer positions than rows.
    Models with relative positions (T5, BLOOM) have no limit.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding) and path.endswith("position_embeddings"):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - offset
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def resolve_max_length(
    wanted: int | None, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> int:
    """Return the number of tokens that examples are truncated to.

    Args:
        wanted: The recipe's `data.max_length`; None takes the limit of model and tokenizer, at most
            1024.
        model: The model, whose position table sets the limit.
        tokenizer: The tokenizer, whose limit is used if `wanted` is None.

    Raises:
        ConfigError: `wanted` is above the model's limit, or leaves no room for a token of a text.
    """
    added = tokenizer.num_special_tokens_to_add()
    if wanted is not None and wanted <= added:
        raise ConfigError(
            f"No token of a text would be left in data.max_length: got {wanted}, expected more "
            f"than the {added} special {'token' if added == 1 else 'tokens'} that the tokenizer "
            "adds. Raise it."
        )
    limit = model_limit(model)
    if wanted is not None and limit is not None and wanted > limit:
        raise ConfigError(
            f"Examples would be too long in data.max_length: got {wanted} tokens, expected at most "
            f"{limit}, the positions of this {type(model).__name__}. Set data.max_length={limit}."
        )
    if wanted is not None:
        return wanted
    limits = [1024, limit or 1024]
    if tokenizer.model_max_length < _UNLIMITED:
        limits.append(tokenizer.model_max_length)
    return min(limits)

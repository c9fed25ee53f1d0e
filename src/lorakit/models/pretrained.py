"""Load a base model and its tokenizer, and explain what is wrong where that fails."""

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

from lorakit.config import QuantizationConfig, TaskType
from lorakit.errors import ConfigError, QuantizationError, TargetError
from lorakit.injection.selection.heads import task_heads
from lorakit.libraries.foreign_code import load_pretrained
from lorakit.libraries.logs import logging_errors_only
from lorakit.models.loading_problems import DAMAGE, cannot_load, check_local, check_missing
from lorakit.models.skeleton import given_options, model_config
from lorakit.quantization.load import is_quantized, load_as_quantized, load_quantized

_UNLIMITED = 10**9
"""Tokenizers without a limit give 10^30 as `model_max_length`."""

_OF_CONFIG = ("num_labels", "id2label", "label2id")
"""Options that a model's configuration takes; its weights are loaded without them."""

_fresh: WeakKeyDictionary[nn.Module, tuple[str, ...]] = WeakKeyDictionary()


def auto_model(task_type: TaskType) -> Any:
    """Return the transformers class that loads a base model for a task type."""
    return {
        TaskType.CAUSAL_LM: AutoModelForCausalLM,
        TaskType.SEQ_CLS: AutoModelForSequenceClassification,
        TaskType.TOKEN_CLS: AutoModelForTokenClassification,
        TaskType.SEQ_2_SEQ_LM: AutoModelForSeq2SeqLM,
    }[task_type]


def label_options(labels: Sequence[str] | None) -> dict[str, Any]:
    """Return the options of `from_pretrained` that give a model its labels."""
    if labels is None:
        return {}
    return {
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def tokenizer_at_hand(name: str) -> PreTrainedTokenizerBase | None:
    """Return a model's tokenizer where it lies on this machine and needs no code of its own."""
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

    Where the tokenizer has no padding token, its end-of-text token pads; padding never counts in
    a loss, as every collator here marks it by position and not by its id.

    Args:
        name: Hub id or local directory.
        key: Where the name stands, for an error: a recipe key or a file.
        is_adapter: The directory is that of an adapter, with a tokenizer but no model in it.
        trust_remote_code: Whether code that comes with the tokenizer may run.
        options: Passed on to `AutoTokenizer.from_pretrained`; those that are None are left out.

    Raises:
        MissingFileError: There is no such model, or it comes without a tokenizer.
        ConfigError: The tokenizer has neither a padding nor an end-of-text token.
    """
    if not is_adapter:
        check_local(name, key)
    try:
        tokenizer = load_pretrained(
            AutoTokenizer, name, trust_remote_code=trust_remote_code, **given_options(options)
        )
    except Exception as error:  # the tokenizers library raises plain exceptions
        raise cannot_load(name, key, "tokenizer", error) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ConfigError(
                f"The tokenizer of '{name}' in {key} cannot pad: it has no pad_token, and "
                "no eos_token to take its place. Save it with a pad_token and name that directory."
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
        auto_class: Such as `AutoModelForCausalLM`.
        name: Hub id or local directory.
        seed: Weights the checkpoint does not have, such as a new head, are drawn with it.
        has_head: The task has a head of its own (a classifier), which the checkpoint need not
            have, or may have for other labels.
        key: Where the name stands, for an error: a recipe key or a file.
        quantization: How to keep it in fewer bits; None leaves it as it is saved.
        trained_in_full: Names of modules that are not quantised, as an adapter trains them.
        device: Where a quantised model goes; None takes the accelerator if there is one.
        trust_remote_code: Whether code that comes with the model may run.
        options: Passed on to `from_pretrained`; those that are None are left out.

    Raises:
        MissingFileError: There is no such model, or it comes without weights.
        ConfigError: The model cannot do the task, or its checkpoint lacks weights of the body.
        QuantizationError: It cannot be quantised as asked; see `load_quantized`.
    """
    check_local(name, key)
    with torch.random.fork_rng(), logging_errors_only():
        torch.manual_seed(seed)
        try:
            config = model_config(name, {**options, "trust_remote_code": trust_remote_code})
            given: dict[str, Any] = {
                "trust_remote_code": trust_remote_code,
                "ignore_mismatched_sizes": has_head,
                **{
                    key: value
                    for key, value in given_options(options).items()
                    if key not in _OF_CONFIG
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
        except (OSError, ValueError, KeyError, RuntimeError, *DAMAGE) as error:
            raise cannot_load(name, key, "model", error, auto_class) from error
    missing = set(info["missing_keys"])
    missing |= {entry[0] for entry in info["mismatched_keys"]}
    check_missing(model, sorted(missing), name, key, has_head)
    fresh = dict.fromkeys(key.rpartition(".")[0] for key in sorted(missing))
    remember_fresh_modules(model, tuple(fresh))
    return model


def fresh_modules(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of the modules whose weights the checkpoint did not have."""
    return _fresh.get(model, ())


def remember_fresh_modules(model: nn.Module, paths: Sequence[str]) -> None:
    """Note which modules of a model have weights that its checkpoint did not have."""
    _fresh[model] = tuple(paths)


def draw_fresh_weights(model: PreTrainedModel, seed: int) -> None:
    """Draw the weights that the checkpoint did not have anew, as `load_model` draws them.

    Args:
        model: A loaded base.
        seed: Loading the base with this seed would have given the same bits.
    """
    fresh: list[Any] = [model.get_submodule(path) for path in fresh_modules(model)]
    every: Any = model.modules()
    for module in every:
        module._is_hf_initialized = module not in fresh  # what transformers goes by
    for module in fresh:
        for parameter in module.parameters(recurse=False):
            parameter._is_hf_initialized = False
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.initialize_weights()


def fresh_outside_head(model: nn.Module) -> tuple[str, ...]:
    """Return the freshly drawn modules that are no part of the task's head.

    An adapter has to carry them (a BERT pooler, for example): loading the base again would draw
    other weights.
    """
    heads = task_heads(model)
    return tuple(
        path
        for path in fresh_modules(model)
        if not any(path == head or path.startswith(f"{head}.") for head in heads)
    )


def model_limit(model: PreTrainedModel) -> int | None:
    """Return the most tokens a model has positions for, or None where there is no limit.

    Learned position tables that reserve a padding row (RoBERTa's) hold fewer positions than rows.
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
    """Return how many tokens of a row are kept.

    Args:
        wanted: The recipe's `data.max_length`; None takes what model and tokenizer can do, but at
            most 1024.
        model: Its position table sets the limit.
        tokenizer: Its own limit is used where nothing is wanted.

    Raises:
        ConfigError: `wanted` is above the model's limit.
    """
    limit = model_limit(model)
    if wanted is not None and limit is not None and wanted > limit:
        raise ConfigError(
            f"Rows would be too long in data.max_length: got {wanted} tokens, expected at most "
            f"{limit}, the positions of this {type(model).__name__}. Set data.max_length={limit}."
        )
    if wanted is not None:
        return wanted
    limits = [1024, limit or 1024]
    if tokenizer.model_max_length < _UNLIMITED:
        limits.append(tokenizer.model_max_length)
    return min(limits)

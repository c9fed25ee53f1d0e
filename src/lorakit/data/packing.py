"""Pack texts into one sequence, with isolation: packed texts must not attend to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lorakit.config import NOT_COUNTED
from lorakit.errors import ConfigError

_ISOLATING_STRATEGIES = ("bfd", "bfd_split")
"""Packing strategies in which packed texts must not attend to each other."""

# Attention across texts changes the logits by a share of their size; experts that receive another
# number of tokens only round differently.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 2e-2


@dataclass
class PackCollator(DataCollatorForLanguageModeling):
    """Makes one batch row of each packed sequence; positions restart with each text.

    TRL's collator concatenates all sequences of a batch, as flash attention expects. Attention with
    a mask would then compute scores between all of them, and discard most.
    """

    return_position_ids: bool = True

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad packed sequences, or sequences of one text each."""
        batch = super().torch_call(examples)
        positions = batch.pop("position_ids")
        if "seq_lengths" in examples[0]:
            # Without a padding mask, transformers derives the masks from the positions.
            del batch["attention_mask"]
            batch["labels"][positions == 0] = NOT_COUNTED
            batch["position_ids"] = positions
        return batch


def asks_to_pack(training: Mapping[str, Any]) -> str:
    """Return which training argument asks for packing with isolation, or ""."""
    if training.get("padding_free"):
        return "padding_free"
    if (training.get("packing_strategy") or "bfd") not in _ISOLATING_STRATEGIES:
        return ""
    return next((key for key in ("packing", "eval_packing") if training.get(key)), "")


def require_position_ids(model: nn.Module, training: Mapping[str, Any]) -> None:
    """Refuse to pack for a model that takes no position ids, which say where a text begins.

    Args:
        model: The model.
        training: The recipe's `training:` section, with or without packing.

    Raises:
        ConfigError: Names the model.
    """
    asked = asks_to_pack(training)
    if asked and "position_ids" not in signature(model.forward).parameters:
        raise ConfigError(
            f"Examples cannot be packed for this model: got training.{asked}=true, but "
            f"{type(model).__name__} takes no position ids, so packed texts would see each other. "
            f"Leave {asked} out."
        )


def isolating_collator(
    model: Any,
    collators: Sequence[DataCollatorForLanguageModeling],
    ids: Sequence[int],
    training: Mapping[str, Any],
    precision: AbstractContextManager[Any],
) -> DataCollatorForLanguageModeling:
    """Return the first collator in whose batches packed texts do not attend to each other.

    A model may take position ids and still attend to all earlier tokens: it may ignore them in its
    attention mask, or carry a state along. So this changes a text and compares the logits of the
    text packed after it.

    Args:
        model: A causal language model.
        collators: Candidate collators, in order of preference.
        ids: At least two tokens of a text.
        training: The training arguments that ask for packing.
        precision: The context that the model trains in, such as autocast.

    Raises:
        ConfigError: Packed texts attend to each other with every collator.
    """
    reasons = []
    was_training = model.training
    model.eval()
    try:
        for collator in collators:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), precision:
                reason = _isolation_failure(model, collator, [*ids])
            if not reason:
                return collator
            reasons.append(reason)
    finally:
        model.train(was_training)
    asked = asks_to_pack(training)
    raise ConfigError(
        f"Examples cannot be packed for this model: got training.{asked}=true, but "
        f"{type(model).__name__} with attention '{model.config._attn_implementation}' lets packed "
        f"texts see each other ({reasons[-1]}). Leave {asked} out."
    )


def _isolation_failure(
    model: Any, collator: DataCollatorForLanguageModeling, ids: list[int]
) -> str:
    """Return how a text's logits depend on the text packed before it, or ""."""
    others = [(token + 1) % model.config.get_text_config().vocab_size for token in ids]
    try:
        before, after = (_logits_after(model, collator, first, ids) for first in (ids, others))
    except (ValueError, NotImplementedError, ImportError) as error:
        return (str(error).splitlines() or ["it cannot run them"])[0].rstrip(".")
    error, size = (after - before).abs().max(), before.abs().max()
    if error <= _TOLERANCE.get(before.dtype, _HALF_TOLERANCE) * size:
        return ""
    return f"the text before it changes a text's logits by {float(error / size):.0%}"


def _logits_after(
    model: Any, collator: DataCollatorForLanguageModeling, first: list[int], second: list[int]
) -> Tensor:
    """Return the logits of a text packed after another, (tokens, vocabulary)."""
    packed = {
        "input_ids": first + second,
        "labels": first + second,
        "seq_lengths": [len(first), len(second)],
    }
    batch = {
        key: value.to(model.device) if isinstance(value, Tensor) else value
        for key, value in collator([packed, packed]).items()
        if key != "labels"
    }
    logits: Tensor = model(**batch, use_cache=False).logits
    return logits.reshape(-1, logits.shape[-1])[-len(second) :]

"""Rows of several packed texts, which must not see each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lorakit.data.tokenize_examples import NOT_COUNTED
from lorakit.errors import ConfigError

_BY_TEXT = ("bfd", "bfd_split")
"""Packing strategies that keep the packed texts apart from each other."""

# An attention in which texts see each other moves the logits by a share of their size; experts
# that are handed other numbers of tokens round them differently.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_HALF_TOLERANCE = 2e-2


@dataclass
class PackCollator(DataCollatorForLanguageModeling):
    """Makes a batch whose rows are the packed rows, each token with its position in its own text.

    TRL's own collator lays all rows of a batch end to end, as flash attention wants them. Attention
    through a mask would then compare each token with those of all rows, to throw most of it away.
    """

    return_position_ids: bool = True

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad rows of several texts, or of one text each."""
        batch = super().torch_call(examples)
        positions = batch.pop("position_ids")
        if "seq_lengths" in examples[0]:
            # Without a mask of padding, transformers' masks begin anew where the positions do.
            del batch["attention_mask"]
            batch["labels"][positions == 0] = NOT_COUNTED
            batch["position_ids"] = positions
        return batch


def asks_to_pack(training: Mapping[str, Any]) -> str:
    """Return which argument asks for rows of several texts that do not see each other, or ""."""
    if training.get("padding_free"):
        return "padding_free"
    if (training.get("packing_strategy") or "bfd") not in _BY_TEXT:
        return ""
    return next((key for key in ("packing", "eval_packing") if training.get(key)), "")


def require_position_ids(model: nn.Module, training: Mapping[str, Any]) -> None:
    """Refuse to pack for a model that cannot be told where a packed text begins.

    Args:
        model: The model.
        training: The recipe's `training:` section, which asks for packing or none.

    Raises:
        ConfigError: Names the model.
    """
    asked = asks_to_pack(training)
    if asked and "position_ids" not in signature(model.forward).parameters:
        raise ConfigError(
            f"Rows cannot be packed for this model: got training.{asked}=true, but "
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
    """Return the first collator in whose batches the model keeps packed texts apart, by trying.

    A model may take position ids and still let each token see all before it: its attention's mask
    may be made without them, or it may carry a state along. So a text is changed, and the logits of
    the text packed behind it are compared.

    Args:
        model: A causal language model.
        collators: What may make the batches, the preferred one first.
        ids: A few tokens of a text, two or more.
        training: The training arguments that asked for packing.
        precision: What the model trains under, such as autocast.

    Raises:
        ConfigError: The texts see each other in the batches of every collator.
    """
    reasons = []
    was_training = model.training
    model.eval()
    try:
        for collator in collators:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), precision:
                reason = _sees_others(model, collator, [*ids])
            if not reason:
                return collator
            reasons.append(reason)
    finally:
        model.train(was_training)
    asked = asks_to_pack(training)
    raise ConfigError(
        f"Rows cannot be packed for this model: got training.{asked}=true, but "
        f"{type(model).__name__} with attention '{model.config._attn_implementation}' lets packed "
        f"texts see each other ({reasons[-1]}). Leave {asked} out."
    )


def _sees_others(model: Any, collator: DataCollatorForLanguageModeling, ids: list[int]) -> str:
    """Return how a text's logits depend on the text packed before it, or ""."""
    others = [(token + 1) % model.config.get_text_config().vocab_size for token in ids]
    try:
        before, after = (_logits_behind(model, collator, first, ids) for first in (ids, others))
    except (ValueError, NotImplementedError, ImportError) as error:
        return (str(error).splitlines() or ["it cannot run them"])[0].rstrip(".")
    error, size = (after - before).abs().max(), before.abs().max()
    if error <= _TOLERANCE.get(before.dtype, _HALF_TOLERANCE) * size:
        return ""
    return f"the text before it changes a text's logits by {float(error / size):.0%}"


def _logits_behind(
    model: Any, collator: DataCollatorForLanguageModeling, first: list[int], second: list[int]
) -> Tensor:
    """Return a text's logits in a row behind another text, (tokens, vocabulary)."""
    row = {
        "input_ids": first + second,
        "labels": first + second,
        "seq_lengths": [len(first), len(second)],
    }
    batch = {key: _moved(value, model.device) for key, value in collator([row, row]).items()}
    del batch["labels"]
    logits: Tensor = model(**batch, use_cache=False).logits
    return logits.reshape(-1, logits.shape[-1])[-len(second) :]


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value

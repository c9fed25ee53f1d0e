"""Neutral text, on which base and adapter are compared to see what training made them forget."""

from __future__ import annotations

from importlib.resources import files

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorakit.data.tokenizers import token_ids
from lorakit.models.pretrained import model_limit

_MOST_TOKENS = 256
"""Largest number of tokens of a passage; only byte-level tokenizers reach it."""


def neutral_passages() -> list[str]:
    """Return short passages on everyday matters, mostly in English, written for this purpose."""
    path = files("lorakit.training.verdict") / "neutral_text.txt"
    return path.read_text(encoding="utf-8").strip().split("\n\n")


def encode_neutral_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Tokenize the passages for a causal language model; every token but the first counts."""
    limit = min(model_limit(model) or _MOST_TOKENS, _MOST_TOKENS)
    ids = [token_ids(tokenizer, passage)[:limit] for passage in neutral_passages()]
    ids = [passage for passage in ids if len(passage) > 1]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})

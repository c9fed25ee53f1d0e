"""Encode preferences: prompts with two answers, for the tasks that compare these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Value
from transformers import PreTrainedTokenizerBase

from lorakit.data import Place, unused_note
from lorakit.data.answers import FEATURES, answer_encoder, join_answers
from lorakit.data.chunks import Batch
from lorakit.data.conversations import TEMPLATE_VARIABLES, TOOLS
from lorakit.data.preferences import (
    PARTS,
    VOTES_KEY,
    PreferenceLayout,
    TwoAnswers,
    check_preferences,
    find_preferences,
    preference_reader,
)
from lorakit.data.table_cache import TableCache
from lorakit.data.tokenize_examples import map_examples, naming_examples
from lorakit.data.tokenizers import tokenizer_digest
from lorakit.errors import DataError
from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.training.encoded import Encoded
from lorakit.training.tasks.base import Loaded
from lorakit.training.tasks.encode_splits import EncodedSplit, encode_splits
from lorakit.training.tasks.language_layouts import refuse_chat_keys

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import Recipe


@dataclass(frozen=True)
class AnswersEncoder:
    """Encodes the examples of an objective: prompts with two answers each."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    config: ObjectiveConfig
    layout: PreferenceLayout
    max_length: int
    counts_prompts: bool
    """Whether the tokens of prompts count too."""

    def encode(
        self, examples: Dataset, where: Place, cache: TableCache, *, is_part: bool = False
    ) -> EncodedSplit:
        """Encode the examples in which tokens count into ids, labels and lengths of their parts.

        Args:
            examples: The examples.
            where: Their name, for errors.
            cache: Where the result of large data is kept.
            is_part: Whether more examples follow.

        Raises:
            DataError: Lists every problem of the examples.
        """
        data = self.recipe.data
        encode_pairs = answer_encoder(
            *(self.tokenizer, self.layout.is_conversation, self.recipe.model, data.system_prompt),
            last_turn_only=data.turns == "last",
        )
        selected, read = preference_reader(examples, self.layout)
        features = {**FEATURES, "number": Value("int64")}
        if self.config.reads_votes:
            features[VOTES_KEY] = Value("int64")

        def encode_chunk(batch: Batch, numbers: Sequence[int]) -> list[tuple[TwoAnswers, Any]]:
            pairs = read(batch, numbers)
            return list(zip(pairs, encode_pairs(pairs), strict=True))

        tokens_of = naming_examples(encode_chunk, where)

        def encode(batch: Batch, numbers: Sequence[int]) -> tuple[Batch, tuple[int]]:
            made: Batch = {name: [] for name in features}
            cut = 0
            for number, (pair, (first, second)) in zip(
                numbers, tokens_of(batch, numbers), strict=True
            ):
                joined = join_answers(
                    first,
                    second,
                    self.max_length,
                    counts_prompt=self.counts_prompts,
                    may_be_same=self.config.reads_votes,
                )
                if joined is None:
                    continue
                cut += joined.is_cut
                values = {
                    "input_ids": joined.ids,
                    "labels": joined.labels,
                    PARTS: joined.parts,
                    "number": number,
                    VOTES_KEY: pair.vote,
                }
                for name, column in made.items():
                    column.append(values[name])
            return made, (cut,)

        check = partial(check_preferences, examples, self.layout, where, is_part=is_part)
        made, (cut,) = map_examples(selected, encode, features, self._identity, cache, check)
        kept = made.data.column("number").to_numpy()
        return EncodedSplit(made.remove_columns("number"), cut, kept=kept)

    def _identity(self) -> str:
        """Return all that the ids of an example depend on besides it."""
        data = self.recipe.data
        return repr(
            (
                self.layout,
                (data.turns, data.system_prompt),
                (self.config.reads_votes, self.counts_prompts, self.max_length),
                tokenizer_digest(self.tokenizer),
            )
        )


def encode_answers(
    splits: Splits,
    loaded: Loaded,
    config: ObjectiveConfig,
    max_length: int,
    *,
    counts_prompts: bool = False,
) -> tuple[Encoded, PreferenceLayout]:
    """Encode the examples of both splits.

    Returns: The encoded examples, without settings of inference, and their layout.

    Raises:
        DataError: Lists every problem of the examples.
    """
    data = loaded.recipe.data
    layout = find_preferences(splits.train, data, config, splits.training_place(data))
    if not layout.is_conversation:
        refuse_chat_keys(data, layout.name)
    encoder = AnswersEncoder(
        *(loaded.recipe, loaded.tokenizer, config, layout, max_length, counts_prompts)
    )

    def encode(examples: Dataset, kind: str, where: Place, cache: TableCache) -> EncodedSplit:
        if kind == "validation":
            find_preferences(examples, data, config, where)  # it has the columns of training
        split = encoder.encode(examples, where, cache)
        if not len(split.examples):
            raise DataError(_nothing_counts(where, max_length))
        why = f"within {max_length} tokens no token of an answer counts, or both are the same"
        return split.noting_left_out(examples, kind, why)

    def encode_part(examples: Dataset, where: Place, cache: TableCache) -> Dataset:
        return encoder.encode(examples, where, cache, is_part=True).examples

    used = [*layout.columns, *((TOOLS, TEMPLATE_VARIABLES) if layout.is_conversation else ())]
    notes = [*layout.notes, *unused_note(splits.train, used)]
    return encode_splits(splits, data, max_length, encode, notes, encode_part), layout


def _nothing_counts(where: Place, max_length: int) -> str:
    return (
        f"Nothing can be learnt from {where}: within {max_length} tokens no token of an answer "
        "counts, or both answers are the same. Raise data.max_length, or shorten the prompts."
    )

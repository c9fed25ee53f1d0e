"""Encode preferences: prompts with two answers, for the tasks that compare these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datasets import Dataset, Features, Value
from transformers import PreTrainedTokenizerBase

from lorakit.data import Place, unused_note
from lorakit.data.answers import FEATURES, EncodedAnswers, answer_encoder, join_answers
from lorakit.data.conversations import TEMPLATE_VARIABLES, TOOLS
from lorakit.data.preferences import (
    PARTS,
    VOTES_KEY,
    PreferenceLayout,
    check_preferences,
    find_preferences,
    read_votes,
    two_answers,
)
from lorakit.data.tokenize_examples import cut_note
from lorakit.errors import DataError
from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.training.tasks.language_layouts import refuse_chat_keys

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import Recipe


def encode_answers(
    splits: Splits,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    config: ObjectiveConfig,
    max_length: int,
    *,
    counts_prompts: bool = False,
) -> tuple[dict[str, Dataset], int, PreferenceLayout, list[str]]:
    """Encode the examples of both splits.

    Returns: The examples by "training" and "validation", the number of training examples that were
        truncated, the layout, and notes.

    Raises:
        DataError: Lists every problem of the examples.
    """
    data = recipe.data
    layout = find_preferences(splits.train, data, config, splits.training_place(data))
    if not layout.is_conversation:
        refuse_chat_keys(data, layout.name)
    encode = answer_encoder(
        *(tokenizer, layout.is_conversation, recipe.model, data.system_prompt),
        last_turn_only=data.turns == "last",
    )
    used = [*layout.columns, *((TOOLS, TEMPLATE_VARIABLES) if layout.is_conversation else ())]
    notes = [*layout.notes, *unused_note(splits.train, used)]
    encoded: dict[str, Dataset] = {}
    cuts: dict[str, int] = {}
    for examples, kind, where in splits.with_places(data):
        if kind == "validation":
            find_preferences(examples, data, config, where)  # it has the columns of training
        check_preferences(examples, layout, where)

        def join(pair: Any) -> EncodedAnswers | None:
            return join_answers(
                *encode(pair),
                max_length,
                counts_prompt=counts_prompts,
                may_be_same=config.reads_votes,
            )

        made = [join(pair) for pair in two_answers(examples, layout)]
        kept = [one for one in made if one is not None]
        if not kept:
            raise DataError(_nothing_counts(where, max_length))
        encoded[kind] = _dataset(made, read_votes(examples, layout))
        cuts[kind] = sum(one.is_cut for one in kept)
        notes += cut_note(cuts[kind], len(examples), max_length, kind)
        if len(kept) < len(examples):
            notes.append(
                f"{len(examples) - len(kept)} of {len(examples)} {kind} examples were left out: "
                f"within {max_length} tokens no token of an answer counts, or both are the same."
            )
    return encoded, cuts["training"], layout, notes


def _dataset(made: Sequence[EncodedAnswers | None], votes: Sequence[int] | None) -> Dataset:
    """Return the examples with tokens that count."""
    kept = [number for number, one in enumerate(made) if one is not None]
    rows: list[Any] = [made[number] for number in kept]
    columns: dict[str, Any] = {
        "input_ids": [row.ids for row in rows],
        "labels": [row.labels for row in rows],
        PARTS: [row.parts for row in rows],
    }
    features = dict(FEATURES)
    if votes is not None:
        columns[VOTES_KEY] = [votes[number] for number in kept]
        features[VOTES_KEY] = Value("int64")
    return Dataset.from_dict(columns, features=Features(features))


def _nothing_counts(where: Place, max_length: int) -> str:
    return (
        f"Nothing can be learnt from {where}: within {max_length} tokens no token of an answer "
        "counts, or both answers are the same. Raise data.max_length, or shorten the prompts."
    )

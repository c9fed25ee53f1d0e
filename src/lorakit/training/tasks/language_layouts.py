"""How CAUSAL_LM examples of each layout are checked, encoded and described."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorakit.data import Place, require_columns, unused_note
from lorakit.data.chat import ChatEncoder
from lorakit.data.chunks import Batch
from lorakit.data.conversations import TEMPLATE_VARIABLES, TOOLS, check_conversations
from lorakit.data.text_formats import (
    ALPACA,
    CountedIds,
    Layout,
    example_encoder,
    require_end_token,
    text_columns,
)
from lorakit.data.tokenize_examples import require_texts
from lorakit.errors import ConfigError

if TYPE_CHECKING:
    from lorakit.recipes.recipe import DataConfig, Recipe


def uses_template(layout: Layout, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the examples are rendered with the chat template."""
    is_instruction = layout.name == "alpaca" and bool(tokenizer.chat_template)
    return bool(layout.conversation) or is_instruction


def layout_encoder(
    layout: Layout, recipe: Recipe, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Batch], list[CountedIds]]:
    """Return the function that encodes columns of examples and marks the tokens that count.

    Raises:
        ConfigError: Keys about conversations contradict each other or are given for other examples,
            or the tokenizer lacks what the layout needs.
    """
    training = recipe.training
    only = training.get("assistant_only_loss")
    counts_prompts = training.get("completion_only_loss") is False
    if uses_template(layout, tokenizer):
        _require_one_count(recipe, only is False, counts_prompts)
        counts_all = only is False or (layout.name == "alpaca" and counts_prompts)
        chat = ChatEncoder(
            tokenizer,
            layout.conversation or (layout.data.messages,),
            not counts_all,
            recipe.model,
            counts_prompts=counts_prompts,
            last_turn_only=layout.data.turns == "last",
            system_prompt=layout.data.system_prompt,
        )
        return example_encoder(layout, tokenizer, chat)
    refuse_chat_keys(layout.data, layout.name)
    if only:
        raise ConfigError(
            "Only conversations have an assistant: got training.assistant_only_loss=true for "
            f"examples read as '{layout.name}', expected 'messages'. Leave it out: with a prompt "
            "and its completion, only the completion counts anyway."
        )
    require_end_token(tokenizer)
    return example_encoder(layout, tokenizer, None, counts_prompts=counts_prompts)


def _require_one_count(recipe: Recipe, counts_all: bool, counts_prompts: bool) -> None:
    """Refuse to count the last turn only and more than that."""
    if recipe.data.turns != "last" or not (counts_all or counts_prompts):
        return
    key = "assistant_only_loss" if counts_all else "completion_only_loss"
    raise ConfigError(
        "Two keys contradict each other about the tokens that count: got data.turns=last and "
        f"training.{key}=false, which counts more than the last turn, expected one of them. Leave "
        "the other out."
    )


def refuse_chat_keys(data: DataConfig, layout: str) -> None:
    """Refuse keys about conversations, for examples that are none.

    Args:
        data: The recipe's section.
        layout: Name of the layout of the examples.

    Raises:
        ConfigError: Names the keys.
    """
    if data.given_chat_keys:
        raise ConfigError(
            f"Only conversations have turns and system prompts: got "
            f"{' and '.join(data.given_chat_keys)} for examples read as '{layout}', which are not "
            "rendered with a chat template, expected 'messages'. Leave it out."
        )


def layout_notes(
    examples: Dataset, layout: Layout, tokenizer: PreTrainedTokenizerBase
) -> list[str]:
    """Return notes on how the examples are rendered and which columns are not used."""
    notes, used = [], [*text_columns(layout.name, layout.data).values()]
    if layout.name == "alpaca":
        used.append(ALPACA[1])
        if uses_template(layout, tokenizer):
            notes.append("Instructions and outputs are rendered with the model's chat template.")
    if layout.conversation:
        if layout.name == "prompt_completion":
            notes.append(
                f"The messages in '{layout.data.prompt}' and '{layout.data.completion}' are "
                "rendered as one conversation with the model's chat template."
            )
        used += [TOOLS, TEMPLATE_VARIABLES]
        if TOOLS in examples.column_names and TOOLS not in str(tokenizer.chat_template):
            notes.append("The chat template does not render tools, so they are left out.")
    if uses_template(layout, tokenizer) and layout.data.turns == "last":
        notes.append("Only the last message of the assistant counts (data.turns).")
    return notes + unused_note(examples, used)


def check_examples(examples: Dataset, layout: Layout, where: Place) -> None:
    """Check that each example has what its layout needs.

    Raises:
        DataError: Lists the examples of each problem.
    """
    columns = text_columns(layout.name, layout.data)
    require_columns(examples, columns, where)
    if layout.conversation:
        check_conversations(examples, layout.conversation, where)
    else:
        require_texts(examples, columns, where)

"""The layouts of CAUSAL_LM examples: detect them from the columns and encode examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from lorakit.data import Place
from lorakit.data.chunks import Batch
from lorakit.data.conversations import is_conversation
from lorakit.data.preferences import (
    PREFERENCE,
    VOTES,
    preference_layout_of,
    supervised_problem,
)
from lorakit.data.reading.columns import first_value
from lorakit.data.tokenizers import end_id, many_token_ids, with_ends
from lorakit.errors import ConfigError, DataError, first_few

if TYPE_CHECKING:
    from datasets import Dataset

    from lorakit.recipes.recipe import DataConfig

ALPACA = ("instruction", "input", "output")


@dataclass(frozen=True)
class CountedIds:
    """The tokens of one example and which of them count in the loss."""

    ids: list[int]
    counted: list[bool]


def alpaca_prompt(instruction: str, given: str = "") -> str:
    """Return the prompt of an instruction, with its input if it has one.

    >>> print(alpaca_prompt("Name the colour.", "grass"))
    Here is an instruction together with its input. Write the answer to it.
    <BLANKLINE>
    ### Instruction:
    Name the colour.
    <BLANKLINE>
    ### Input:
    grass
    <BLANKLINE>
    ### Response:
    <BLANKLINE>
    """
    if given.strip():
        opening = "Here is an instruction together with its input. Write the answer to it."
        middle = f"\n\n### Input:\n{given}"
    else:
        opening = "Here is an instruction. Write the answer to it."
        middle = ""
    return f"{opening}\n\n### Instruction:\n{instruction}{middle}\n\n### Response:\n"


def text_columns(format_name: str, data: DataConfig) -> dict[str, str]:
    """Return the columns of a layout, by the recipe key that names each."""
    return {
        "text": {"data.text": data.text},
        "prompt_completion": {"data.prompt": data.prompt, "data.completion": data.completion},
        "messages": {"data.messages": data.messages},
        "alpaca": {f"the alpaca column {name}": name for name in (ALPACA[0], ALPACA[2])},
    }[format_name]


@dataclass(frozen=True)
class Layout:
    """How the examples of a CAUSAL_LM dataset are laid out."""

    name: str
    """text, prompt_completion, messages or alpaca."""
    data: DataConfig
    """The `data:` section, with the columns that were detected by their contents."""
    notes: tuple[str, ...] = ()
    conversation: tuple[str, ...] = ()
    """Columns of messages that form one conversation: messages, or prompt and completion."""


def find_layout(examples: Dataset, data: DataConfig, where: Place | str) -> Layout:
    """Return the layout of the examples: the recipe's, or the first that has all its columns.

    The order is messages, prompts, instructions, plain text: a dataset that has rendered text
    besides its messages is better used by its messages. A column of messages is also recognized by
    its contents, such as ShareGPT's "conversations".

    Raises:
        DataError: No layout fits, or the data is for preference tuning; lists the columns of each
            layout and those of the data.
    """
    columns = examples.column_names
    notes = []
    if data.format in ("auto", "messages") and data.messages not in columns:
        halves = {data.prompt, data.completion}
        possible = [name for name in columns if not (name in halves and halves <= set(columns))]
        found = [name for name in possible if is_conversation(first_value(examples, name))]
        if len(found) == 1 and preference_layout_of(columns, data) != PREFERENCE:
            data = data.model_copy(update={"messages": found[0]})
            notes.append(f"The messages are read from the column '{found[0]}' (data.messages).")
    name = detect_format(columns, data, where)
    talk = conversation_columns(examples, name, data)
    if data.format != "auto":
        return Layout(name, data, tuple(notes), talk)
    if name == "prompt_completion" and isinstance(first_value(examples, data.label), bool):
        what = "completions that are good or bad"
        raise DataError(supervised_problem(VOTES, where, what))
    notes.append(f"The examples are read as '{name}', from their columns (data.format).")
    return Layout(name, data, tuple(notes), talk)


def conversation_columns(examples: Dataset, name: str, data: DataConfig) -> tuple[str, ...]:
    """Return the columns of a layout that form one conversation, none for a layout of texts.

    A prompt and its completion may each be a list of messages.
    """
    if name == "messages":
        return (data.messages,)
    if name != "prompt_completion":
        return ()
    halves = (data.prompt, data.completion)
    values = [first_value(examples, column) for column in halves]
    holds_messages = [is_conversation(value) for value in values]
    is_list = any(isinstance(value, list) and is_conversation(value) for value in values)
    return halves if is_list or all(holds_messages) else ()


def detect_format(columns: Sequence[str], data: DataConfig, where: Place | str) -> str:
    """Return the recipe's layout, or the first that has all its columns.

    Raises:
        DataError: No layout fits; lists the columns of each layout and those of the data.
    """
    if data.format in (PREFERENCE, VOTES):
        what = f"data.format={data.format}"
        raise DataError(supervised_problem(data.format, where, what))
    if data.format != "auto":
        return data.format
    layouts = ("messages", "prompt_completion", "alpaca", "text")
    for layout in layouts:
        if all(column in columns for column in text_columns(layout, data).values()):
            return layout
    if preference_layout_of(columns, data) == PREFERENCE:
        what = f"'{data.chosen}' and '{data.rejected}' answers"
        raise DataError(supervised_problem(PREFERENCE, where, what))
    wanted = "; ".join(
        f"{layout}: {', '.join(text_columns(layout, data).values())}" for layout in layouts
    )
    raise DataError(
        f"No known layout in {where}: got the columns {first_few(columns, 25)}, expected those of "
        f"one of these: {wanted}. Name your columns in the recipe, such as data.text={columns[0]}."
    )


def texts_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[CountedIds]:
    """Tokenize plain texts; every token counts, including the end-of-text token."""
    made = with_ends(tokenizer, many_token_ids(tokenizer, texts))
    return [CountedIds(ids, [True] * len(ids)) for ids in made]


def completions_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    completions: Sequence[str],
    *,
    counts_prompts: bool = False,
) -> list[CountedIds]:
    """Tokenize prompts and their completions; the completion and the end-of-text token count.

    Both are tokenized as one text, so a token may span the border, as it does when the model reads
    such a text; the completion begins after the ids that it shares with the prompt alone.

    Args:
        tokenizer: The base model's tokenizer.
        prompts: The prompts.
        completions: The completion of each.
        counts_prompts: Whether prompts count too.
    """
    (found,) = answers_ids(tokenizer, prompts, completions, counts_prompts=counts_prompts)
    return found


def answers_ids(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *answers: Sequence[str],
    counts_prompts: bool = False,
) -> list[list[CountedIds]]:
    """Tokenize prompts with several lists of completions; see `completions_ids`."""
    alone = many_token_ids(tokenizer, prompts)
    found: list[list[CountedIds]] = []
    for completions in answers:
        whole = [prompt + answer for prompt, answer in zip(prompts, completions, strict=True)]
        made = with_ends(tokenizer, many_token_ids(tokenizer, whole))
        found.append([])
        for before, ids in zip(alone, made, strict=True):
            start = 0 if counts_prompts else common_prefix_length(before, ids)
            counted = [False] * start + [True] * (len(ids) - start)
            found[-1].append(CountedIds(ids, counted))
    return found


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the number of leading ids that two sequences share.

    >>> common_prefix_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    most = min(len(first), len(second))
    if first[:most] == second[:most]:
        return most
    return next((at for at in range(most) if first[at] != second[at]), most)


def require_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without an end-of-text token.

    Raises:
        ConfigError: There is none, so the model could not learn to stop.
    """
    if end_id(tokenizer) is None:
        raise ConfigError(
            "Texts have no end token: the tokenizer in model has no eos_token, so the model would "
            "not learn to stop. Name a token of its vocabulary in training.eos_token."
        )


def example_encoder(
    layout: Layout,
    tokenizer: PreTrainedTokenizerBase,
    chat: Callable[[Sequence[Mapping[str, Any]]], list[CountedIds]] | None,
    *,
    counts_prompts: bool = False,
) -> Callable[[Batch], list[CountedIds]]:
    """Return the function that encodes the columns of examples of a layout.

    Args:
        layout: The layout of the examples.
        tokenizer: The base model's tokenizer.
        chat: Encodes the messages of examples, if the tokenizer has a chat template. Instructions
            are then rendered as a user message in `data.messages`.
        counts_prompts: Whether the prompts of texts count too.
    """
    data = layout.data

    def encode_texts(batch: Batch) -> list[CountedIds]:
        return texts_ids(tokenizer, batch[data.text])

    def encode_completions(batch: Batch) -> list[CountedIds]:
        given = (batch[data.prompt], batch[data.completion])
        return completions_ids(tokenizer, *given, counts_prompts=counts_prompts)

    def encode_instructions(batch: Batch) -> list[CountedIds]:
        instructions, answers = batch[ALPACA[0]], batch[ALPACA[2]]
        inputs = [given or "" for given in batch.get(ALPACA[1], [""] * len(instructions))]
        asked = list(zip(instructions, inputs, strict=True))
        if chat is None:
            prompts = [alpaca_prompt(*one) for one in asked]
            return completions_ids(tokenizer, prompts, answers, counts_prompts=counts_prompts)
        questions = ["\n\n".join(one) if one[1].strip() else one[0] for one in asked]
        return chat(
            [
                {
                    data.messages: [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": answer},
                    ]
                }
                for question, answer in zip(questions, answers, strict=True)
            ]
        )

    if chat is not None and layout.conversation:
        return lambda batch: chat(
            [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        )
    encoders = {
        "text": encode_texts,
        "prompt_completion": encode_completions,
        "alpaca": encode_instructions,
    }
    return encoders[layout.name]

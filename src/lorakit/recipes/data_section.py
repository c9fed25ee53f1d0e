"""The `data:` section of a recipe: the examples, and the meaning of their columns."""

import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, Field, field_validator

from lorakit.config import Count, ProblemType, StrictConfig, TaskType
from lorakit.errors import first_few

_KEYS_OF: Mapping[TaskType, tuple[str, ...]] = {
    TaskType.SEQ_CLS: ("problem_type", "label_separator", "class_weights", "text_pair"),
    TaskType.SEQ_2_SEQ_LM: ("source_prefix", "max_target_length"),
    TaskType.CAUSAL_LM: ("turns", "system_prompt"),
}
"""Keys that a single task reads, besides those that name columns."""

_LONGEST_PATH, _LONGEST_NAME = 4095, 255
"""Limits of Linux in bytes."""


def _expand_home(value: str) -> str:
    """Expand a leading `~` in a path, as a shell does."""
    if not value.startswith("~"):
        return value
    try:
        return str(Path(value).expanduser())
    except RuntimeError:
        raise ValueError("there is no such home directory") from None


def require_name(value: str) -> str:
    """Reject names that neither a file system nor the hub accepts."""
    if not value.strip():
        raise ValueError("expected a name, not only spaces")
    if not value.isprintable():
        raise ValueError("expected a name without control characters")
    if len(os.fsencode(value)) > _LONGEST_PATH:
        raise ValueError(f"expected at most {_LONGEST_PATH:,} bytes")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in value.split("/")):
        raise ValueError(f"expected at most {_LONGEST_NAME} bytes between two slashes")
    return value


NameOrPath = Annotated[
    str, Field(min_length=1), AfterValidator(require_name), AfterValidator(_expand_home)
]


class SourceConfig(StrictConfig):
    """One of several sources of training examples."""

    path: NameOrPath | tuple[NameOrPath, ...]
    """File, glob such as "chats/*.jsonl", hub id, directory of a saved dataset, or several."""

    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """How often an epoch has each example: 2 is twice, 0.5 a random half, another in each epoch."""

    columns: dict[str, str] | None = None
    """Columns to take, by the names they get: {text: review} calls "review" "text" and leaves out
    all others. None takes all as they are."""

    subset: str | None = None
    """Configuration of a hub dataset."""

    split: str | None = None
    """Split of the dataset; None is `data.train_split`."""

    @field_validator("path")
    @classmethod
    def _require_some(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value:
            raise ValueError("expected at least one file")
        return value

    @property
    def names(self) -> tuple[str, ...]:
        """The paths."""
        return (self.path,) if isinstance(self.path, str) else self.path


class DataConfig(StrictConfig):
    """The dataset, and the meaning of its columns."""

    train: NameOrPath | tuple[SourceConfig, ...]
    """Training examples: hub id, csv/json/jsonl/parquet file, glob of files, or directory of a
    saved dataset; or a list of sources, each with `path`, `weight`, `columns`, `subset` and
    `split`."""

    validation: NameOrPath | None = None
    """Validation examples, a name like that of `train`; None takes the dataset's validation split,
    or holds out a share of `train`."""

    subset: str | None = None
    """Configuration of a hub dataset, such as "mrpc" of "glue"."""

    train_split: str = "train"
    """Split of the dataset with the training examples."""

    validation_split: str | None = None
    """None: the split "validation" if the dataset has one, else see `validation_fraction`."""

    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Fraction of the training examples to use for validation if no validation data is given.

    0 uses none.
    """

    delimiter: str | None = None
    """Delimiter of a csv file; None detects a comma, semicolon, tab or vertical bar, whichever
    gives every line as many cells as the header."""

    format: Literal[
        "auto", "text", "prompt_completion", "messages", "alpaca", "preference", "votes"
    ] = "auto"
    """Layout of CAUSAL_LM examples, the last two for an `objective`; "auto" infers it."""

    text: str = "text"
    """Column of texts, for SEQ_CLS and plain CAUSAL_LM."""

    text_pair: str | None = None
    """Column of second texts, for SEQ_CLS on pairs; None reads single texts."""

    label: str = "label"
    """Column of labels, for SEQ_CLS: one class, a list of labels, a number or a list of numbers; of
    votes (true or false, 1 or 0), for `objective` kto."""

    problem_type: Literal["auto", ProblemType] = "auto"
    """What a SEQ_CLS label is: one class, several labels ("multi_label_classification") or numbers
    ("regression"); "auto" infers it from the labels. Whole numbers are classes unless this says
    "regression"."""

    label_separator: str | None = None
    """Separator of several labels, or several numbers, in one text, as in "red|blue" of a csv
    file; None reads lists only."""

    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """Weights of classes in the training loss of SEQ_CLS, such as {spam: 3}, where an example of
    weight 2 counts twice and classes left out have weight 1. "balanced" gives all classes the same
    influence: examples / (classes · examples of the class)."""

    tokens: str = "tokens"
    """Column of lists of words, for TOKEN_CLS."""

    tags: str = "tags"
    """Column of lists of tags, one for each word, for TOKEN_CLS."""

    prompt: str = "prompt"
    """Column of prompts: texts, or messages that the completion's messages continue."""

    completion: str = "completion"
    """Column of completions: texts, or messages, of which the assistant's count in the loss."""

    chosen: str = "chosen"
    """Column of the better answers, for an `objective`: texts or messages. Without a column of
    prompts, what it and `rejected` begin with alike is the prompt."""

    rejected: str = "rejected"
    """Column of the worse answers, likewise."""

    messages: str = "messages"
    """Column of lists of messages, for CAUSAL_LM on chats."""

    turns: Literal["all", "last"] = "all"
    """Which messages of the assistant count in the loss, for CAUSAL_LM on chats: all, or the last
    of each conversation, or of each of two answers that are compared. Of these, a message with a
    `weight` of 0 does not count."""

    system_prompt: str | None = None
    """System message of every conversation, for CAUSAL_LM on chats: it replaces the one that a
    conversation begins with, or is put before its first message. It is saved with the adapter, and
    inference puts it before messages that do not begin with a system message."""

    source: str = "source"
    """Column of input texts, for SEQ_2_SEQ_LM."""

    target: str = "target"
    """Column of output texts, for SEQ_2_SEQ_LM."""

    source_prefix: str = ""
    """Prefix of every source text, as T5 expects ("summarize: ")."""

    new_tokens: tuple[str, ...] = ()
    """Strings to add to the vocabulary as single tokens. Their embeddings are added to the base,
    trained and saved with the adapter."""

    max_length: Count | None = None
    """Maximum input length in tokens; None takes the model's limit, at most 1024."""

    max_target_length: Count = 128
    """Maximum length of a SEQ_2_SEQ_LM target in tokens."""

    max_train_rows: Count | None = None
    """Largest number of training examples; None takes all."""

    max_validation_rows: Count | None = None
    """Largest number of validation examples; None takes all."""

    streaming: bool = False
    """Whether training examples are read when they are needed, for files larger than the disk or
    the memory, or a run of few steps. It needs `training.max_steps`, task CAUSAL_LM or an
    `objective`, and csv, jsonl or parquet files. Validation examples are `validation`, or the first
    `max_validation_rows` (1,000) of `train`. The `weight` of a source is then its share of the
    examples, not of an epoch."""

    shuffle_buffer: Count = 10_000
    """Number of examples of each source among which a stream draws the next one."""

    cache_bytes: int = Field(20_000_000_000, ge=0)
    """Largest size of all prepared data that is kept on disk for later runs, of all recipes: large
    files as they were read, and their tokens. 0 keeps nothing."""

    cache_directory: str | None = None
    """Directory of the prepared data; None takes lorakit/data in the user's cache."""

    @field_validator("train")
    @classmethod
    def _require_sources(
        cls, value: str | tuple[SourceConfig, ...]
    ) -> str | tuple[SourceConfig, ...]:
        if not value:
            raise ValueError("expected at least one source")
        return value

    @property
    def train_names(self) -> tuple[str, ...]:
        """The paths and ids of the training examples."""
        if isinstance(self.train, str):
            return (self.train,)
        return tuple(name for source in self.train for name in source.names)

    @property
    def train_name(self) -> str:
        """The training examples, for messages."""
        return self.train if isinstance(self.train, str) else first_few(self.train_names, 3)

    @field_validator("delimiter")
    @classmethod
    def _require_one_character(cls, value: str | None) -> str | None:
        value = "\t" if value in ("\\t", "tab") else value  # easier to type in a shell
        if value is not None and (len(value) != 1 or value in '"\r\n '):
            raise ValueError('expected one character such as ";", or "tab"')
        return value

    @field_validator("label_separator")
    @classmethod
    def _require_separator(cls, value: str | None) -> str | None:
        if value is not None and not value:
            raise ValueError('expected a text such as "|"')
        return value

    @field_validator("system_prompt")
    @classmethod
    def _require_words_of_system(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("expected a text; leave it out to keep the conversations' own")
        return value

    @field_validator("class_weights", mode="before")
    @classmethod
    def _require_weights(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        weights = cast(Mapping[Any, Any], value)
        wrong = [
            f"{label}: {weight}"
            for label, weight in weights.items()
            if isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not 0 < weight < math.inf
        ]
        if wrong:
            raise ValueError(f"expected weights above 0, not {first_few(wrong)}")
        return {str(label): float(weight) for label, weight in weights.items()}

    @field_validator("new_tokens")
    @classmethod
    def _require_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted(word for word, count in Counter(value).items() if count > 1)
        if repeated:
            raise ValueError(f"expected each string once, not {repeated} twice")
        blank = [word for word in value if not word or word != word.strip()]
        if blank:
            raise ValueError(f"expected strings without spaces around them, not {blank}")
        return value

    @property
    def given_chat_keys(self) -> list[str]:
        """The keys about conversations that are not at their defaults."""
        is_given = {"turns": self.turns != "all", "system_prompt": self.system_prompt is not None}
        return [f"data.{key}" for key, given in is_given.items() if given]

    def require_keys_of(self, task: TaskType, has_objective: bool) -> None:
        """Refuse keys that only other tasks read.

        Args:
            task: The task.
            has_objective: Whether it is trained on preferences.

        Raises:
            ValueError: Names the keys.
        """
        problems: list[str] = []
        for reader, keys in _KEYS_OF.items():
            given = [f"data.{key}" for key in keys if self._is_given(key)]
            if given and reader is not task:
                problems.append(f"{' and '.join(given)} is for task {reader} only")
        if self._is_given("format") and task is not TaskType.CAUSAL_LM and not has_objective:
            problems.append("data.format is for task CAUSAL_LM or an `objective`")
        if problems:
            raise ValueError(f"{'; '.join(problems)}; leave it out")

    def _is_given(self, key: str) -> bool:
        return getattr(self, key) != type(self).model_fields[key].default

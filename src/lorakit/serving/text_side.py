"""What stands between texts and a model: tokenizer, chat template, format and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.data.chat import (
    TEMPLATE_ERRORS,
    leaves_out_system,
    wants_content_parts,
    with_content_parts,
)
from lorakit.data.conversations import NOT_VARIABLES, with_default_system
from lorakit.data.text_formats import alpaca_prompt
from lorakit.data.tokenizers import (
    answer_ids,
    batch_columns,
    chat_columns,
    end_id,
    ids_to_continue,
    token_ids,
    word_columns,
)
from lorakit.errors import first_line
from lorakit.inference.prediction import count_fitting, find_words
from lorakit.models.pretrained import load_tokenizer
from lorakit.serving.pooled.forward_items import Columns
from lorakit.serving.pooled.labels import Word
from lorakit.serving.refusals import RequestError

TOKENIZER_FILE = "tokenizer_config.json"

_FILES = (
    *("tokenizer.json", TOKENIZER_FILE, "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "vocab.json", "vocab.txt", "merges.txt"),
)

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class WordColumns:
    """The tokens of a list of words."""

    columns: Columns
    word_of: Sequence[int | None]
    """Index of the word of each token."""
    words: Sequence[Word]


class TextSide:
    """Encodes the texts of one adapter, or of the base alone.

    Its methods are called in one thread, because tokenizers change while they truncate.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: InferenceSettings,
        labels: Sequence[str],
        max_length: int,
    ):
        """Put the parts together.

        Args:
            model: The model, for the tokens that end its answers.
            tokenizer: The adapter's tokenizer, with its chat template.
            settings: The adapter's settings.
            labels: Names of the head's labels.
            max_length: Number of tokens that texts to classify are truncated to.
        """
        self.tokenizer = tokenizer
        self.settings = settings
        self.labels = tuple(labels)
        self.max_length = max_length
        self._model = model

    @cached_property
    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        end: Any = getattr(self._model.generation_config, "eos_token_id", None)
        ids = [end] if isinstance(end, int) else list(end or [])
        ids += [end_id(self.tokenizer), *self.settings.stop_token_ids]
        return frozenset(one for one in ids if one is not None)

    @cached_property
    def grammar_tokenizer(self) -> Any:
        """The tokenizer as llguidance needs it.

        Raises:
            RequestError: It is none that llguidance can read.
        """
        from llguidance.hf import from_tokenizer

        rows = self._model.get_output_embeddings().weight.shape[0]  # type: ignore[union-attr]  # models of texts have embeddings
        untyped: Any = self.tokenizer
        try:
            return from_tokenizer(untyped, n_vocab=rows)
        except Exception as error:  # llguidance raises plain exceptions
            raise RequestError(
                f"Answers of this model cannot follow a schema: {first_line(error)}. Leave "
                "response_format out.",
                param="response_format",
                code="unsupported_parameter",
            ) from error

    # ---- prompts ----

    def chat_ids(
        self,
        messages: Messages,
        variables: Mapping[str, Any] | None = None,
        *,
        opens_answer: bool = True,
    ) -> list[int]:
        """Return the tokens of a conversation.

        The system prompt of training is put before one that begins with no system message.

        An adapter that was trained on alpaca examples and has no chat template takes one user
        message as its instruction.

        Args:
            messages: The conversation.
            variables: Variables for the chat template.
            opens_answer: Whether the assistant's turn is opened.

        Raises:
            RequestError: There is no chat template, or it refuses the conversation or leaves its
                system message out.
        """
        taken = [name for name in variables or {} if name in (*NOT_VARIABLES, "tools")]
        if taken:
            raise RequestError(
                f"A variable of the chat template cannot be set: got '{taken[0]}', which the "
                "server decides. Leave it out.",
                param="chat_template_kwargs",
            )
        if not self.tokenizer.chat_template:
            return self._alpaca_ids(messages)
        given = with_default_system(messages, self.settings.system_prompt)
        if any(each["role"] == "system" for each in given) and self._leaves_out_system:
            raise RequestError(
                "The system message would have no effect: the chat template of this model leaves "
                "it out. Put it into the first message of the user.",
                param="messages",
                code="chat_template_failed",
            )
        try:
            if self._wants_content_parts:
                given = with_content_parts(given)
            columns = chat_columns(
                self.tokenizer, given, add_generation_prompt=opens_answer, **(variables or {})
            )
        except TEMPLATE_ERRORS as error:
            raise RequestError(
                f"The chat template refuses the conversation: {first_line(error)}. Change the "
                "messages to what this model was trained on.",
                param="messages",
                code="chat_template_failed",
            ) from error
        return list(columns["input_ids"])

    def _alpaca_ids(self, messages: Messages) -> list[int]:
        is_one_question = len(messages) == 1 and messages[0]["role"] == "user"
        if self.settings.format != "alpaca":
            raise RequestError(
                "The conversation cannot be rendered: this model has no chat template. Use POST "
                "/v1/completions with the prompt as one text.",
                param="messages",
                code="no_chat_template",
            )
        if not is_one_question:
            raise RequestError(
                f"The conversation cannot be rendered: got {len(messages)} messages, expected one "
                "of the user, because this model was trained on single instructions. Send one.",
                param="messages",
                code="no_chat_template",
            )
        return self.prompt_ids(alpaca_prompt(str(messages[0]["content"])))

    def prompt_ids(self, text: str) -> list[int]:
        """Return the tokens of a text to continue."""
        ids = ids_to_continue(self.tokenizer, text)
        if not ids:  # an empty prompt consists of a token too
            untyped: Any = self.tokenizer
            start = untyped.bos_token_id
            ids = [(end_id(self.tokenizer) or 0) if start is None else start]
        return ids

    def plain_ids(self, text: str, *, with_special_tokens: bool) -> list[int]:
        """Return the tokens of a text as the tokenizer makes them."""
        if with_special_tokens:
            return token_ids(self.tokenizer, text)
        untyped: Any = self.tokenizer
        return list(untyped(text, add_special_tokens=False, verbose=False)["input_ids"])

    @cached_property
    def _leaves_out_system(self) -> bool:
        try:
            return leaves_out_system(self.tokenizer)
        except TEMPLATE_ERRORS:
            return False  # the template tells why it refuses a conversation

    @cached_property
    def _wants_content_parts(self) -> bool:
        return wants_content_parts(self.tokenizer)

    # ---- texts for one forward pass ----

    def source_columns(self, text: str) -> Columns:
        """Return the columns of a text for a sequence-to-sequence model, truncated."""
        return self._columns(self.settings.source_prefix + text)

    def class_columns(self, given: str | tuple[str, str]) -> Columns:
        """Return the columns of a text or a pair to classify, truncated as in training.

        Raises:
            RequestError: A text is given where a pair is expected, or the other way round; or it
                has no token.
        """
        pairs = self.settings.text_pair
        if isinstance(given, str) == pairs:
            wanted, got = ("pairs of texts", "a text") if pairs else ("texts", "a pair")
            raise RequestError(
                f"The input does not fit the adapter: got {got}, expected {wanted}, on which it "
                "was trained.",
                param="input",
            )
        form = self.settings.format
        if form is None or not isinstance(given, str):
            return self._columns(*([given] if isinstance(given, str) else given))
        ids = answer_ids(self.tokenizer, given, has_end=form == "messages")[: self.max_length]
        columns = {"input_ids": ids, "attention_mask": [1] * len(ids)}
        _require_tokens(columns)
        return columns

    def _columns(self, *texts: str) -> Columns:
        made = batch_columns(
            self.tokenizer,
            *([text] for text in texts),
            truncation=True,
            max_length=self.max_length,
        )
        columns = {name: values[0] for name, values in made.items()}
        _require_tokens(columns)
        return columns

    def columns_to_embed(self, given: str | Sequence[int], limit: int | None) -> Columns:
        """Return the columns of a text or of tokens whose vector is wanted, not truncated.

        Raises:
            RequestError: It has no token, or more than the model can take.
        """
        if isinstance(given, str):
            made = batch_columns(self.tokenizer, [given], verbose=False)
            columns: dict[str, Sequence[int]] = {name: rows[0] for name, rows in made.items()}
        else:
            columns = {"input_ids": list(given), "attention_mask": [1] * len(given)}
        tokens = len(columns["input_ids"])
        if not tokens or (limit is not None and tokens > limit):
            raise RequestError(
                f"An input cannot be embedded: got {tokens} tokens, expected 1 to "
                f"{'any number' if limit is None else limit}, the context of the model. Send "
                "another.",
                param="input",
                code="context_length_exceeded" if tokens else "invalid_parameter",
            )
        return columns

    def word_columns(self, given: str | Sequence[str]) -> WordColumns:
        """Return the columns of a text, or of words, to be labelled word by word.

        Raises:
            RequestError: There is no word, or there are more than fit.
        """
        if isinstance(given, str):
            words = [Word(given[a:b], a, b) for a, b in find_words(given)]
        else:
            words = [Word(word) for word in given]
        if not words:
            raise RequestError(
                "An input has no word: expected at least one.",
                param="input",
            )
        texts = [word.text for word in words]
        columns, (word_of,) = word_columns(self.tokenizer, [texts], self.max_length)
        fitting = count_fitting(word_of, len(words), self.max_length)
        if fitting < len(words):
            raise RequestError(
                f"An input is too long to be labelled: got {len(words)} words, expected at most "
                f"the {fitting} that fit into {self.max_length} tokens. Split it.",
                param="input",
                code="context_length_exceeded",
            )
        first = {name: rows[0] for name, rows in columns.items()}
        _require_tokens(first)
        return WordColumns(first, word_of, words)


def _require_tokens(columns: Columns) -> None:
    """Refuse a text without a token, whose outputs would be those of the padding.

    Raises:
        RequestError: It has none.
    """
    if not columns["input_ids"]:
        raise RequestError(
            "An input has no token: expected at least one. Leave it out.",
            param="input",
        )


class TokenizerCache:
    """Tokenizers by the contents of their files, for the one thread that encodes texts."""

    def __init__(self, base: PreTrainedTokenizerBase, *, trust_remote_code: bool = False):
        """Begin with the base's tokenizer, for adapters without one.

        Args:
            base: The base's tokenizer.
            trust_remote_code: Whether code that comes with a tokenizer may run.
        """
        self._base = base
        self._trust_remote_code = trust_remote_code
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}

    def get(self, directory: Path | None) -> PreTrainedTokenizerBase:
        """Return the tokenizer in an adapter's directory, or the base's if there is none.

        Raises:
            MissingFileError, ConfigError: See `load_tokenizer`.
        """
        if directory is None or not (directory / TOKENIZER_FILE).is_file():
            return self._base
        digest = _digest(directory)
        if digest not in self._tokenizers:
            self._tokenizers[digest] = load_tokenizer(
                str(directory),
                key=str(directory),
                is_adapter=True,
                trust_remote_code=self._trust_remote_code,
            )
        return self._tokenizers[digest]


def _digest(directory: Path) -> str:
    """Return the hash of everything a tokenizer is loaded from."""
    content = hashlib.sha256()
    files = [directory / name for name in _FILES]
    files += sorted([*directory.glob("*.model"), *directory.glob("chat_templates/*")])
    for file in files:
        if file.is_file():
            content.update(f"{file.name}\0".encode())
            content.update(hashlib.sha256(file.read_bytes()).digest())
    return content.hexdigest()

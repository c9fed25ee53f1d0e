"""The text of an answer while its tokens arrive."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from lorakit.data.tokenizers import decode

_UNKNOWN = "\ufffd"
_CONTEXT = 5
"""Tokens of the prompt that decide whether the answer begins with a space."""
_LONGEST_WINDOW = 16
"""Tokens that are decoded together; the text of a token depends on few before it."""
_LONGEST_WAIT = 64
"""Tokens that are decoded together while a character is incomplete."""
_LONGEST_CHARACTER = 4
"""Bytes of a character, of which tokens may hold one each."""


class TextStream:
    """Text that is certain with each token: no half characters, nothing of a stop text."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stop: Sequence[str] = ()
    ):
        """Create a stream.

        Args:
            tokenizer: Special tokens are left out of the text.
            prompt: Tokens before the answer.
            stop: Texts at which the answer ends.
        """
        self.is_stopped = False
        """Whether a stop text has come."""
        self._tokenizer = tokenizer
        self._window = self._end_of(prompt)
        self._seen = self._decode(self._window)
        self._waiting = 0
        self._stop = tuple(stop)
        self._held = ""

    def add(self, token: int) -> str:
        """Add a token; return the text that is certain now."""
        self._window.append(token)
        text = self._decode(self._window)
        # Where bytes are tokens, one incomplete character makes all bytes before it unknown too.
        certain = text.rstrip(_UNKNOWN)
        unknown = len(text) - len(certain)
        is_waiting = unknown and len(certain) <= len(self._seen)
        self._waiting = self._waiting + 1 if is_waiting else 0
        if self._waiting >= _LONGEST_CHARACTER:  # no character comes of the first of these bytes
            is_long = len(self._window) > _LONGEST_WAIT
            certain = text[: len(text) - (0 if is_long else min(unknown, _LONGEST_CHARACTER - 1))]
        new, self._seen = certain[len(self._seen) :], max(certain, self._seen, key=len)
        if len(self._window) > _LONGEST_WINDOW and certain == text:
            self._window = self._end_of(self._window)
            self._seen = self._decode(self._window)
        return self._until_stop(new)

    def end(self) -> str:
        """Return the text that was held back, as no token follows."""
        rest = self._until_stop(self._decode(self._window)[len(self._seen) :])
        if self.is_stopped:
            return rest
        rest, self._held = rest + self._held, ""
        return rest

    def _end_of(self, tokens: Sequence[int]) -> list[int]:
        """Return the last tokens, from the beginning of a character on."""
        for length in range(_CONTEXT, _CONTEXT + _LONGEST_CHARACTER):
            if not self._decode(tokens[-length:]).startswith(_UNKNOWN):
                return list(tokens[-length:])
        return list(tokens[-_CONTEXT:])

    def _decode(self, tokens: Sequence[int]) -> str:
        return decode(
            self._tokenizer,
            tokens,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )

    def _until_stop(self, new: str) -> str:
        """Return text before a stop text, without an end that may become one."""
        if not self._stop:
            return new
        text = self._held + new
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self.is_stopped, self._held = True, ""
            return text[: min(places)]
        held = max(_common_length(text, stop) for stop in self._stop)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _common_length(text: str, stop: str) -> int:
    """Return the length of the longest end of a text that a stop text begins with."""
    most = min(len(text), len(stop) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(stop[:n])), 0)

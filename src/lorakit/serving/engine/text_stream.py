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
        self._window = list(prompt[-_CONTEXT:])
        self._seen = self._decode()
        self._stop = tuple(stop)
        self._held = ""

    def add(self, token: int) -> str:
        """Add a token; return the text that is certain now."""
        self._window.append(token)
        text = self._decode()
        unfinished = len(text) - len(text.rstrip(_UNKNOWN))
        certain = text[: len(text) - min(unfinished, _LONGEST_CHARACTER - 1)]
        new, self._seen = certain[len(self._seen) :], max(certain, self._seen, key=len)
        if len(self._window) > (4 if unfinished else 1) * _LONGEST_WINDOW:
            self._window = self._window[-_CONTEXT:]
            self._seen = self._decode()
        return self._until_stop(new)

    def end(self) -> str:
        """Return the text that was held back, as no token follows."""
        rest = self._until_stop(self._decode()[len(self._seen) :])
        if self.is_stopped:
            return rest
        rest, self._held = rest + self._held, ""
        return rest

    def _decode(self) -> str:
        return decode(
            self._tokenizer,
            self._window,
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

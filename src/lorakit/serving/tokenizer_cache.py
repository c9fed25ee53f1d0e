"""Tokenizers of adapters; those of the same files are one object."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from lorakit.models.pretrained import load_tokenizer

TOKENIZER_FILE = "tokenizer_config.json"

_FILES = (
    *("tokenizer.json", TOKENIZER_FILE, "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "vocab.json", "vocab.txt", "merges.txt"),
)


class TokenizerCache:
    """Tokenizers by the contents of their files."""

    def __init__(self, base: PreTrainedTokenizerBase, *, trust_remote_code: bool = False):
        """Begin with the base's tokenizer, for adapters without one.

        Args:
            base: The base's tokenizer.
            trust_remote_code: Whether code that comes with a tokenizer may run.
        """
        self._base = base
        self._trust_remote_code = trust_remote_code
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tokenizers)

    def get(self, directory: Path | None) -> PreTrainedTokenizerBase:
        """Return the tokenizer in an adapter's directory, or the base's if there is none.

        Raises:
            MissingFileError, ConfigError: See `load_tokenizer`.
        """
        if directory is None or not (directory / TOKENIZER_FILE).is_file():
            return self._base
        digest = _digest(directory)
        with self._lock:
            found = self._tokenizers.get(digest)
            if found is None:
                found = self._tokenizers[digest] = load_tokenizer(
                    str(directory),
                    key=str(directory),
                    is_adapter=True,
                    trust_remote_code=self._trust_remote_code,
                )
            return found


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

"""A quickstart on a tiny model and few examples."""

from pathlib import Path

import pytest

from lorakit.quickstart import run
from lorakit.quickstart.docstrings import (
    Docstring,
    DocstringFiles,
    DocstringSplits,
    write_splits,
)

LABELS = tuple("abcdefghij")


def few_examples(folder: Path, *, seed: int) -> DocstringFiles:
    """Write examples of ten labels instead of docstrings."""
    examples = [Docstring(f"{label} number {i}", label) for i in range(6) for label in LABELS]
    return write_splits(DocstringSplits(tuple(examples[20:]), tuple(examples[:20]), LABELS), folder)


@pytest.fixture
def small(monkeypatch, tiny_llama_dir):
    """Make the quickstart small: a tiny base, 40 examples to train on, one short epoch."""
    monkeypatch.setattr(run, "base_model_path", lambda: Path(tiny_llama_dir))
    monkeypatch.setattr(run, "write_docstrings", few_examples)
    monkeypatch.setattr(run, "EPOCHS", 1)
    monkeypatch.setattr(run, "MAX_LENGTH_TOKENS", 24)

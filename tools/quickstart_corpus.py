"""The pre-training corpus of the quickstart model: the source of Python's standard library."""

import ast
import hashlib
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "lib-dynload", "_bundled", "data"}
)
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
MAX_FILE_BYTES = 400_000  # larger ones are tables of test vectors
MIN_DOCSTRING_CHARACTERS = 20
VALIDATION_ONE_IN = 25  # about 4% of the files of the library are held out

# Share of the training windows drawn from each group.
GROUP_SHARES = {"library": 0.66, "docstrings": 0.10, "topics": 0.07, "tests": 0.17}


@dataclass
class Corpus:
    """Documents by group, and the held-out documents.

    Attributes:
        groups: Training documents by group name; every text is one document.
        validation: Held-out texts (files and language topics), never trained on.
        files: Number of source files read, held-out ones included.
        text_bytes: UTF-8 size of those files' texts.
    """

    groups: dict[str, list[str]] = field(
        default_factory=lambda: {name: [] for name in GROUP_SHARES}
    )
    validation: list[str] = field(default_factory=list)
    files: int = 0
    text_bytes: int = 0


def is_held_out(name: str) -> bool:
    """Tell from the name alone, on every machine alike, whether a document is held out."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") % VALIDATION_ONE_IN == 0


def _is_generated(path: Path, text: str) -> bool:
    """Recognize code pages and build settings: tables, not prose or programs."""
    if path.name.startswith("_sysconfigdata") or path.parts[0].startswith("config-"):
        return True
    if path.parts[0] == "encodings" and ("decoding_table" in text or "decoding_map" in text):
        return True
    return sum(character.isascii() for character in text) < 0.99 * len(text)


def _docstrings(text: str) -> list[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(ast.parse(text)):
        docstring = ast.get_docstring(node) if isinstance(node, documented) else None
        if docstring and len(docstring) >= MIN_DOCSTRING_CHARACTERS:
            found.append(docstring)
    return found


def _topics(text: str) -> dict[str, str]:
    """Read the reference manual's topics out of `pydoc_data/topics.py` without importing it."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            return ast.literal_eval(node.value)
    return {}


def read_corpus(stdlib: Path | None = None) -> Corpus:
    """Read the standard library's source.

    Args:
        stdlib: Folder of the library; this interpreter's own when None.

    Returns:
        The corpus, in an order that does not depend on the file system.
    """
    stdlib = stdlib or Path(sysconfig.get_path("stdlib"))
    corpus = Corpus()
    for path in sorted(stdlib.rglob("*.py")):
        relative = path.relative_to(stdlib)
        if SKIPPED_FOLDERS.intersection(relative.parts) or path.stat().st_size > (
            4 * MAX_FILE_BYTES if relative.parts[0] == "pydoc_data" else MAX_FILE_BYTES
        ):
            continue
        try:
            text = path.read_text(encoding="utf-8")
            docstrings = _docstrings(text)
        except (UnicodeDecodeError, SyntaxError, ValueError):
            continue  # test data which is broken on purpose
        is_topics = relative.as_posix() == "pydoc_data/topics.py"
        if not text.strip() or (not is_topics and _is_generated(relative, text)):
            continue
        corpus.files += 1
        corpus.text_bytes += len(text.encode())
        if is_topics:
            for name, topic in sorted(_topics(text).items()):
                held_out = is_held_out(f"pydoc_data/topics/{name}")
                (corpus.validation if held_out else corpus.groups["topics"]).append(topic)
        elif TEST_FOLDERS.intersection(relative.parts):
            corpus.groups["tests"].append(text)
        elif is_held_out(relative.as_posix()):
            corpus.validation.append(text)
        else:
            corpus.groups["library"].append(text)
            corpus.groups["docstrings"].extend(docstrings)
    held_out_docstrings = {item for text in corpus.validation for item in _safe_docstrings(text)}
    corpus.groups["docstrings"] = [
        item
        for item in dict.fromkeys(corpus.groups["docstrings"])
        if item not in held_out_docstrings
    ]
    return corpus


def _safe_docstrings(text: str) -> list[str]:
    try:
        return _docstrings(text)
    except SyntaxError:  # a topic is prose
        return []

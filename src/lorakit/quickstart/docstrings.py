"""The task of the quickstart: predict which package of Python a docstring documents.

The examples come from the source of the local standard library, so the task needs no network.
Sources are parsed, never imported.
"""

import ast
import json
import sysconfig
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.errors import DataError
from lorakit.files.atomic import write_text

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"}
)
MIN_CHARACTERS = 20
CLASSES = 10
MAX_ROWS = 2400  # keeps the quickstart within three minutes on two CPU cores
VALIDATION_SHARE = 0.2
TRAIN_FILE = "train.jsonl"
VALIDATION_FILE = "validation.jsonl"


@dataclass(frozen=True)
class Docstring:
    """One example: a docstring and the top-level package it belongs to.

    Attributes:
        text: Docstring without its indentation.
        label: Name of the package, for example `asyncio`.
    """

    text: str
    label: str


@dataclass(frozen=True)
class DocstringSplits:
    """Disjoint splits of the examples, with the same shares of the classes.

    Attributes:
        train: Training examples, shuffled.
        validation: Validation examples.
        labels: Classes in alphabetical order.
    """

    train: tuple[Docstring, ...]
    validation: tuple[Docstring, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class DocstringFiles:
    """The splits on disk.

    Attributes:
        train: JSON Lines file of training examples, with `text` and `label`.
        validation: JSON Lines file of validation examples.
        labels: Classes in alphabetical order.
    """

    train: Path
    validation: Path
    labels: tuple[str, ...]


def collect_docstrings(stdlib: Path | None = None) -> list[Docstring]:
    """Collect the docstrings of modules, classes and functions of each top-level package.

    A package is a folder with an `__init__.py`. Tests are skipped, as are docstrings shorter than
    `MIN_CHARACTERS`, repetitions, and texts found in more than one package. Files that cannot be
    parsed are skipped.

    Args:
        stdlib: Folder of the standard library; None takes that of this interpreter.

    Returns:
        One example per text, in an order that depends on the sources only.
    """
    folder = Path(sysconfig.get_path("stdlib")) if stdlib is None else stdlib
    packages_of: dict[str, set[str]] = {}
    for init_file in sorted(folder.glob("*/__init__.py")):
        package = init_file.parent
        if package.name in SKIPPED_FOLDERS:
            continue
        for path in sorted(package.rglob("*.py")):
            if SKIPPED_FOLDERS.isdisjoint(path.relative_to(folder).parts):
                for text in _docstrings_of(path):
                    packages_of.setdefault(text, set()).add(package.name)
    return [
        Docstring(text, next(iter(packages)))
        for text, packages in packages_of.items()
        if len(packages) == 1
    ]


def split_docstrings(
    docstrings: Iterable[Docstring],
    *,
    max_rows: int | None = None,
    validation_share: float = VALIDATION_SHARE,
    seed: int = 0,
) -> DocstringSplits:
    """Keep the ten packages with the most docstrings, and split their examples by class.

    Args:
        docstrings: Examples, such as those of `collect_docstrings`.
        max_rows: Largest number of examples in both splits together, sampled with the shares of
            the classes; None keeps all.
        validation_share: Share of validation examples, between 0 and 1.
        seed: Seed of the sampling.

    Returns:
        The same splits for the same examples and arguments.

    Raises:
        DataError: There are fewer than ten packages, or too few examples for each class in both
            splits.
    """
    from sklearn.model_selection import train_test_split

    examples = list(docstrings)
    counts = Counter(example.label for example in examples)
    if len(counts) < CLASSES:
        raise DataError(
            f"Collecting docstrings in the standard library failed: got {len(counts)} packages "
            f"with docstrings, expected at least {CLASSES}. This Python seems to lack its "
            "sources; use a Python whose standard library has .py files."
        )
    labels = sorted(sorted(counts, key=lambda label: (-counts[label], label))[:CLASSES])
    examples = [example for example in examples if example.label in labels]
    try:
        if max_rows is not None and max_rows < len(examples):
            kept, _ = train_test_split(
                examples, train_size=max_rows, random_state=seed, stratify=_labels(examples)
            )
            examples = list[Docstring](kept)
        train, validation = train_test_split(
            examples, test_size=validation_share, random_state=seed, stratify=_labels(examples)
        )
    except ValueError as error:
        raise DataError(
            f"Splitting the docstrings failed: got {len(examples)} examples, "
            f"max_rows={max_rows} and validation_share={validation_share}, expected enough "
            f"examples for each of {CLASSES} classes in both splits ({error}). Raise max_rows."
        ) from error
    return DocstringSplits(tuple(train), tuple(validation), tuple(labels))


def write_splits(splits: DocstringSplits, folder: Path) -> DocstringFiles:
    """Write the splits as JSON Lines with the fields `text` and `label`.

    Args:
        splits: Splits to write.
        folder: Folder of `train.jsonl` and `validation.jsonl`; created if needed. Each file
            appears complete or not at all.

    Returns:
        Paths of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = DocstringFiles(folder / TRAIN_FILE, folder / VALIDATION_FILE, splits.labels)
    _write_examples(splits.train, files.train)
    _write_examples(splits.validation, files.validation)
    return files


def write_docstrings(
    folder: Path,
    *,
    max_rows: int | None = MAX_ROWS,
    validation_share: float = VALIDATION_SHARE,
    seed: int = 0,
    stdlib: Path | None = None,
) -> DocstringFiles:
    """Collect, split and write the data of the quickstart.

    Args:
        folder: Folder of the files; see `write_splits`.
        max_rows: See `split_docstrings`.
        validation_share: See `split_docstrings`.
        seed: See `split_docstrings`.
        stdlib: See `collect_docstrings`.

    Returns:
        Paths of the files.

    Raises:
        DataError: The standard library has fewer than ten packages with docstrings.
    """
    splits = split_docstrings(
        collect_docstrings(stdlib), max_rows=max_rows, validation_share=validation_share, seed=seed
    )
    return write_splits(splits, folder)


def _docstrings_of(path: Path) -> list[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources have invalid escapes
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    found = []
    nodes: deque[Any] = deque([tree])
    while nodes:  # breadth first, as ast.walk, but not into expressions: these define nothing
        node = nodes.popleft()
        for block in ("body", "handlers", "orelse", "finalbody", "cases"):
            nodes.extend(getattr(node, block, ()))
        text = ast.get_docstring(node) if isinstance(node, documented) else None
        if text and len(text) >= MIN_CHARACTERS:
            found.append(text)
    return found


def _labels(examples: Sequence[Docstring]) -> list[str]:
    return [example.label for example in examples]


def _write_examples(examples: Iterable[Docstring], path: Path) -> None:
    # The ASCII escapes of json prevent line separators such as U+2028 from splitting a line.
    lines = (
        json.dumps({"text": example.text, "label": example.label}) + "\n" for example in examples
    )
    write_text(path, "".join(lines))

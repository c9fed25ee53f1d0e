"""What lies beside an adapter's two files and belongs to it: tokenizer, chat template, settings."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.files import CONFIG_FILE, PICKLE_FILE, WEIGHTS_FILE
from lorakit.atomic import appearing_directory
from lorakit.errors import OutputExistsError

_OWN = (CONFIG_FILE, WEIGHTS_FILE, PICKLE_FILE, "README.md")
TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.*", "merges.txt", "spiece.model", "sentencepiece*.model"),
)
"""Patterns of the files that hold a tokenizer beside a model."""


def refuse_occupied(output: Path) -> None:
    """Raise unless an adapter may be written to a directory.

    Raises:
        OutputExistsError: It is a file, or holds files already.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        what = "it is a file" if output.is_file() else "it holds files already"
        raise OutputExistsError(
            f"Cannot write an adapter to {output}: {what}, expected a new or empty directory. "
            "Name another one."
        )


def write_with_companions(
    adapter: Adapter,
    output: str | Path,
    source: str | Path | None,
    patterns: Sequence[str] = ("*",),
) -> list[Path]:
    """Write an adapter and what lies beside another one into a directory that appears whole.

    Args:
        adapter: The adapter.
        output: A new or empty directory.
        source: Where the companions lie; a hub id or None brings none.
        patterns: Which files there.

    Returns: The paths written.

    Raises:
        OutputExistsError: `output` holds files already.
    """
    output = Path(output)
    refuse_occupied(output)
    with appearing_directory(output) as partial:
        adapter.save(partial)
        folder = Path(source) if source is not None else None
        if folder is not None and folder.is_dir():
            for file in {file for pattern in patterns for file in folder.glob(pattern)}:
                if file.is_file() and file.name not in _OWN and not file.name.startswith("."):
                    shutil.copyfile(file, partial / file.name)
        names = sorted(file.name for file in partial.iterdir())
    return [output / name for name in names]

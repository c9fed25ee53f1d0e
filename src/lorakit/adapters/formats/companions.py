"""What lies beside an adapter's two files and belongs to it: tokenizer, chat template, settings."""

import shutil
from pathlib import Path

from lorakit.adapters.adapter import Adapter
from lorakit.errors import OutputExistsError
from lorakit.files.atomic import appearing_directory

COMPANION_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.*", "merges.txt", "spiece.model", "sentencepiece*.model", "source.spm", "target.spm"),
    "lorakit.json",
)
"""Patterns of what comes along: a tokenizer's files, and how the task was set up. A checkpoint has
optimizer states and more beside its adapter, which are not for the one that is made of it."""


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
    adapter: Adapter, output: str | Path, source: str | Path | None
) -> list[Path]:
    """Write an adapter and what belongs to another one into a directory that appears whole.

    Args:
        adapter: The adapter.
        output: A new or empty directory.
        source: Where the companions lie; a hub id or None brings none.

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
            for file in {file for pattern in COMPANION_FILES for file in folder.glob(pattern)}:
                if file.is_file():
                    shutil.copyfile(file, partial / file.name)
        names = sorted(file.name for file in partial.iterdir())
    return [output / name for name in names]

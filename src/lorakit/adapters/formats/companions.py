"""Companion files, which belong to an adapter: tokenizer, chat template, settings."""

import shutil
from pathlib import Path

from lorakit.adapters.adapter import Adapter
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.adapters.lineage import Lineage
from lorakit.files.atomic import creating_directory, require_new_directory

COMPANION_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"),
    *("vocab.*", "merges.txt", "spiece.model", "sentencepiece*.model", "source.spm", "target.spm"),
    "lorakit.json",
)
"""Patterns of the companion files. Other files beside the adapter of a checkpoint, such as
optimizer states, are not copied."""


def refuse_occupied(output: Path) -> None:
    """Raise unless an adapter may be written to a directory.

    Raises:
        OutputExistsError: The path is a file, or a directory that holds files.
    """
    require_new_directory(output, "an adapter")


def copy_companions(source: Path, target: Path) -> None:
    """Copy the companion files of an adapter's directory into another one."""
    for file in {file for pattern in COMPANION_FILES for file in source.glob(pattern)}:
        if file.is_file():
            shutil.copyfile(file, target / file.name)


def write_with_companions(
    adapter: Adapter,
    output: str | Path,
    source: str | Path | None,
    lineage: Lineage | None = None,
) -> list[Path]:
    """Write an adapter with the companion files of another one; the directory appears atomically.

    Args:
        adapter: The adapter.
        output: A new or empty directory.
        source: Directory of the companion files; a hub id or None has none.
        lineage: What the adapter is made from; None for what the companion files say.

    Returns: The paths written.

    Raises:
        OutputExistsError: `output` holds files already.
    """
    output = Path(output)
    refuse_occupied(output)
    with creating_directory(output) as partial:
        adapter.save(partial)
        if source is not None and Path(source).is_dir():
            copy_companions(Path(source), partial)
        if lineage is not None:
            settings = InferenceSettings.load(partial)
            settings.model_copy(update={"lineage": lineage}).save(partial)
        names = sorted(file.name for file in partial.iterdir())
    return [output / name for name in names]

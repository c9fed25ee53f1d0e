"""Paths below a folder of runs, given by somebody who may only see what is in that folder."""

from pathlib import Path

from lorakit.errors import ConfigError, MissingFileError, escaped

STATE_FOLDER = ".lorakit"
"""Hidden directory of the folder for what belongs to no single run: queue, trash, keys."""


def resolve(root: Path, relative: str) -> Path:
    """Return the path of something below `root`, after following symbolic links.

    Args:
        root: Folder of runs.
        relative: Path below it, with slashes, as it comes from an address or a form.

    Raises:
        ConfigError: The path leads out of `root`, directly or by a symbolic link.
        MissingFileError: Nothing is there.
    """
    shown = escaped(relative)
    top = root.resolve()
    try:
        found = (top / relative).resolve()
        is_there = found.exists()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null byte, a circle of links
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"Cannot open '{shown[:200]}' in {root}: {reason}, expected a path below that folder. "
            "Choose one from the list of runs."
        ) from None
    if not found.is_relative_to(top):
        raise ConfigError(
            f"Cannot open '{shown}' in {root}: it leads out of that folder, expected a path below "
            "it. Move the files there, or start the studio with the folder above."
        )
    if not is_there:
        raise MissingFileError(
            f"Nothing at '{shown}' in {root}: there is no such file or directory. Choose one from "
            "the list of runs; it may have been moved or deleted."
        )
    return found

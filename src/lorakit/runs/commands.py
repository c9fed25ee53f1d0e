"""The command lines that the studio runs, as a terminal would."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path


def train_command(
    recipe: str, overrides: Sequence[str] = (), *, resume: bool = False
) -> tuple[str, ...]:
    """Return the words of `lorakit train`.

    Args:
        recipe: Path of the recipe, relative to the folder of the studio.
        overrides: Dotted overrides, such as "training.num_train_epochs=6".
        resume: Whether to train a run on.
    """
    return ("lorakit", "train", recipe, *overrides, *(("--resume",) if resume else ()))


def command_line(root: Path, words: Sequence[str]) -> str:
    """Return a line for a terminal: the words, after a change into the folder if needed.

    >>> command_line(Path("/data/my runs"), ("lorakit", "train", "a b.yaml"))
    "cd '/data/my runs' && lorakit train 'a b.yaml'"
    """
    line = shlex.join(words)
    is_here = Path(os.getcwd()).resolve() == root
    return line if is_here else f"cd {shlex.quote(str(root))} && {line}"

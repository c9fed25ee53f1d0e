"""Where the files of a new run go, and the command that writes them."""

from __future__ import annotations

from pathlib import Path

from nicegui import ui

from lorakit.runs.new_recipe import free_name
from lorakit.studio.blocks import copyable

RECIPES = "recipes"
"""Folder below that of the studio for the recipes that it writes."""


def free_output(root: Path, wanted: str) -> str:
    """Return a new run directory, relative to the folder of the studio.

    Args:
        root: The folder of the studio.
        wanted: Text to make the name of, such as the name of a data file or another run.
    """
    folder = "" if root.name == "runs" else "runs/"
    taken = root / folder
    return f"{folder}{free_name(Path(wanted).stem, taken)}"


def recipe_path(root: Path, output: str) -> str:
    """Return a new file for the recipe of a run, relative to the folder of the studio."""
    return f"{RECIPES}/{free_name(Path(output).name, root / RECIPES)}.yaml"


def draw_command(place: ui.element, line: str) -> None:
    """Show a command line that can be copied."""
    place.clear()
    with place:
        copyable(line, "the command")

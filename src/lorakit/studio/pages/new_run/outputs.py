"""Where the files of a new run go: recipes and run directories with names that are free."""

from __future__ import annotations

from pathlib import Path

from lorakit.runs.new_recipe import free_name

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

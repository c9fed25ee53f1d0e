"""Recipes, which describe a run, and run directories, which hold its results."""

from lorakit.recipes.recipe import DataConfig, Recipe
from lorakit.recipes.run_directory import RunDirectory

__all__ = ["DataConfig", "Recipe", "RunDirectory"]

"""Recipes and run directories: what a run is asked for, and everything it leaves behind."""

from lorakit.recipes.recipe import DataConfig, Recipe
from lorakit.recipes.run_directory import RunDirectory

__all__ = ["DataConfig", "Recipe", "RunDirectory"]

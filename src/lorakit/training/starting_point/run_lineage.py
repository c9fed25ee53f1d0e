"""The lineage of a run's adapter: written when the run starts, kept when it is resumed."""

from __future__ import annotations

import json
from pathlib import Path

from lorakit.adapters.lineage import DataSource, Lineage, data_source
from lorakit.data.reading.several import expand_glob
from lorakit.errors import ConfigError
from lorakit.models.base_digest import base_digest
from lorakit.recipes.data_names import is_glob
from lorakit.recipes.recipe import Recipe
from lorakit.training.starting_point.parent_adapter import StartingPoint

KEY = "lineage"
"""Key of the lineage in environment.json."""


def lineage_of(recipe: Recipe, start: StartingPoint | None) -> Lineage:
    """Return what the adapter of a run is made from; reads the base's and the data's files.

    Files that are streamed have no digest: reading them whole may take longer than the run.
    """
    given = [*recipe.data.train_names, recipe.data.validation]
    names = [
        name
        for one in given
        if one is not None
        for name in (expand_glob(one, "data") if is_glob(one) else [one])
    ]
    return Lineage(
        base_digest=base_digest(recipe.model, recipe.revision),
        data=tuple(
            DataSource(name=name) if recipe.data.streaming else data_source(name) for name in names
        ),
        parents=() if start is None else start.lineage,
    )


def read_lineage(environment_file: Path) -> Lineage | None:
    """Return the lineage in a run's environment.json; None if it has none that can be read."""
    try:
        values = json.loads(environment_file.read_text(encoding="utf-8"))[KEY]
        return Lineage.parse(values, str(environment_file))
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None

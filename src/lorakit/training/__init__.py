"""Training: from a recipe to a run directory with a trained adapter.

The names below are imported when they are first used, so that reading a recipe's class does not
import torch.
"""

import typing as _typing
from importlib import import_module as _import_module

if _typing.TYPE_CHECKING:
    from lorakit.recipes.recipe import DataConfig, Recipe
    from lorakit.recipes.run_directory import RunDirectory, find_adapter
    from lorakit.training.evaluation import evaluate
    from lorakit.training.preview import DryRun, dry_run
    from lorakit.training.run import TrainResult, train

__all__ = [
    "DataConfig",
    "DryRun",
    "Recipe",
    "RunDirectory",
    "TrainResult",
    "dry_run",
    "evaluate",
    "find_adapter",
    "train",
]

_HOMES = {
    "DataConfig": "lorakit.recipes.recipe",
    "DryRun": "lorakit.training.preview",
    "Recipe": "lorakit.recipes.recipe",
    "RunDirectory": "lorakit.recipes.run_directory",
    "TrainResult": "lorakit.training.run",
    "dry_run": "lorakit.training.preview",
    "evaluate": "lorakit.training.evaluation",
    "find_adapter": "lorakit.recipes.run_directory",
    "train": "lorakit.training.run",
}


def __getattr__(name: str) -> _typing.Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})

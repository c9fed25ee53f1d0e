"""Training: from a recipe to a run directory with a trained adapter.

The names below are imported when they are first used, so that reading a recipe's class does not
import torch.
"""

import typing as _typing

from lorakit.libraries.lazy_names import lazy_names as _lazy_names

if _typing.TYPE_CHECKING:
    from lorakit.recipes.recipe import DataConfig, Recipe
    from lorakit.recipes.run_directory import RunDirectory, find_adapter
    from lorakit.training.evaluation import Evaluation, evaluate, measure
    from lorakit.training.preview import DryRun, dry_run
    from lorakit.training.run import TrainResult, train
    from lorakit.training.together import GroupedRun, RunGroup, train_together

__all__ = [
    "DataConfig",
    "DryRun",
    "Evaluation",
    "GroupedRun",
    "Recipe",
    "RunDirectory",
    "RunGroup",
    "TrainResult",
    "dry_run",
    "evaluate",
    "find_adapter",
    "measure",
    "train",
    "train_together",
]

__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "lorakit.recipes.recipe": ("DataConfig", "Recipe"),
        "lorakit.recipes.run_directory": ("RunDirectory", "find_adapter"),
        "lorakit.training.evaluation": ("Evaluation", "evaluate", "measure"),
        "lorakit.training.preview": ("DryRun", "dry_run"),
        "lorakit.training.run": ("TrainResult", "train"),
        "lorakit.training.together": ("GroupedRun", "RunGroup", "train_together"),
    },
)

"""SEQ_CLS with one or several numbers for a text: squared error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from datasets import Dataset, List, Value
from torch import Tensor

from lorakit.analysis.baselines import Guess, guess_numbers
from lorakit.analysis.target_metrics import regression_metric_names, regression_metrics
from lorakit.config import REGRESSION, ProblemType
from lorakit.data import Place
from lorakit.data.targets import numbers_of, size_note
from lorakit.errors import DataError
from lorakit.training.losses.example_losses import ExampleLoss, SquaredError
from lorakit.training.predicted import Evaluated, Predicted, predict_numbers
from lorakit.training.tasks.base import Encoded, Loaded
from lorakit.training.tasks.text_task import TextTask

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import DataConfig, Recipe


class TextRegression(TextTask):
    """Predict numbers for texts."""

    problem_type: ClassVar[ProblemType | None] = REGRESSION
    best_metric: ClassVar[str] = "eval_rmse"
    greater_is_better: ClassVar[bool] = False

    def label_column(self, recipe: Recipe) -> str | None:
        """Return None: numbers are not classes."""
        return None

    def labels(self, splits: Splits, recipe: Recipe) -> tuple[str, ...]:
        """Return the names of the numbers: the column, numbered if there are several."""
        column, where = recipe.data.label, splits.training_place(recipe.data)
        numbers = numbers_of(splits.train, column, where)
        if not splits.only_validation and all(found == numbers[0] for found in numbers):
            raise DataError(
                f"Nothing to predict in {where}, column '{column}': got {numbers[0]} in every "
                "example, expected different numbers. Name the right column in data.label."
            )
        count = len(numbers[0])
        return (column,) if count == 1 else tuple(f"{column}_{n}" for n in range(1, count + 1))

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return loss, errors and correlations."""
        return ("loss", *regression_metric_names(labels or ()))

    def measure(self, targets: Any, logits: Any, labels: Sequence[str]) -> dict[str, float]:
        """Return errors and correlations."""
        return regression_metrics(targets, logits, labels)

    def example_loss(self, encoded: Encoded, label_smoothing: float) -> ExampleLoss:
        """Return the squared error."""
        return SquaredError()

    def read_targets(self, examples: Dataset, data: DataConfig, where: Place | str) -> list[Any]:
        """Return the numbers of each example, a single one not in a list."""
        found = numbers_of(examples, data.label, where)
        return [numbers[0] if len(numbers) == 1 else numbers for numbers in found]

    def check_targets(
        self,
        targets: Sequence[Any],
        seen: Sequence[Any],
        learnt: Sequence[str],
        column: str,
        where: Place,
    ) -> None:
        """Refuse another number of numbers than the training examples have."""
        got, expected = _count(targets[0]), _count(seen[0])
        if got != expected:
            raise DataError(
                f"Lists of numbers differ in {where}, column '{column}': got {got} in each "
                f"example, expected {expected} as in the training examples. Repair the data."
            )

    def encode_targets(self, targets: Sequence[Any], labels: Sequence[str]) -> list[Any]:
        """Return the numbers."""
        return list(targets)

    def target_feature(self, labels: Sequence[str]) -> Any:
        """Return the feature of a number, or of several."""
        return Value("float32") if len(labels) == 1 else List(Value("float32"))

    def describe_target(self, target: Tensor, labels: Sequence[str]) -> str:
        """Return the numbers of an example."""
        return f"target: {', '.join(f'{number:.6g}' for number in target.reshape(-1).tolist())}"

    def target_notes(self, targets: Sequence[Any], labels: Sequence[str], column: str) -> list[str]:
        """Return notes on what is learned, and on numbers far from 0."""
        many = "a number" if len(labels) == 1 else f"{len(labels)} numbers"
        numbers = [one if isinstance(one, list) else [one] for one in targets]
        return [
            f"The labels are read as {many} to predict (data.problem_type={REGRESSION}).",
            *size_note(numbers, column),
        ]

    def prediction_reader(self, loaded: Loaded) -> Callable[[Evaluated], Predicted]:
        """Return what reads the predicted numbers."""
        return lambda found: predict_numbers(found, loaded.labels or ())

    def blind_guess(self, known: Any, examples: Any, labels: Sequence[str]) -> Guess:
        """Return the mean of the numbers."""
        return guess_numbers(known["labels"][:], examples["labels"][:], labels)


def _count(target: Any) -> int:
    return len(target) if isinstance(target, list) else 1

"""Results of the quickstart."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorakit.training.run import TrainResult

OnEvent = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class MethodResult:
    """Result of one training method.

    Attributes:
        method: "LoRA", "head only" or "full fine-tuning".
        accuracy_before: Validation accuracy with a new head, in [0, 1].
        accuracy: Validation accuracy after training, at the best epoch.
        trainable_parameters: Number of trained weights.
        saved_bytes: Size of the weights that the method saves.
        duration_s: Duration of training, including evaluations.
    """

    method: str
    accuracy_before: float
    accuracy: float
    trainable_parameters: int
    saved_bytes: int
    duration_s: float


@dataclass(frozen=True)
class Example:
    """One held-out docstring with its prediction.

    Attributes:
        text: The docstring.
        label: Package of the docstring.
        prediction: Package that the model predicts.
        probability: Probability of the prediction, in [0, 1].
    """

    text: str
    label: str
    prediction: str
    probability: float


@dataclass(frozen=True)
class QuickstartResult:
    """Result of the quickstart.

    Attributes:
        training: Result of the LoRA run.
        methods: LoRA first, then the methods it is compared with.
        examples: Held-out docstrings with predictions.
        checkpoint_bytes: Size of the weights of the base model on disk.
        guessing_accuracy: Accuracy of always guessing the commonest package, as in the report.
    """

    training: TrainResult
    methods: tuple[MethodResult, ...]
    examples: tuple[Example, ...]
    checkpoint_bytes: int
    guessing_accuracy: float

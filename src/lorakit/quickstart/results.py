"""What the quickstart finds out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lorakit.training.run import TrainResult

OnEvent = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class MethodResult:
    """How one way of training did.

    Attributes:
        method: "LoRA", "head only" or "full fine-tuning".
        accuracy_before: Share of validation rows told right with a new head, in [0, 1].
        accuracy: The same after training, at the best epoch.
        trainable_parameters: Number of trained weights.
        saved_bytes: Size of the weights this way of training has to save.
        duration_s: Time to train, evaluations included.
    """

    method: str
    accuracy_before: float
    accuracy: float
    trainable_parameters: int
    saved_bytes: int
    duration_s: float


@dataclass(frozen=True)
class Example:
    """One held-out docstring and what the trained model says of it.

    Attributes:
        text: The docstring.
        label: The package it comes from.
        prediction: The package the model names.
        probability: The model's probability of its prediction, in [0, 1].
    """

    text: str
    label: str
    prediction: str
    probability: float


@dataclass(frozen=True)
class QuickstartResult:
    """What the quickstart did.

    Attributes:
        training: The LoRA run.
        methods: LoRA first, then the methods it is compared with.
        examples: Held-out docstrings, classified.
        checkpoint_bytes: Size of the base model's weights on disk.
        chance: The accuracy of guessing, one in the number of packages.
    """

    training: TrainResult
    methods: tuple[MethodResult, ...]
    examples: tuple[Example, ...]
    checkpoint_bytes: int
    chance: float

"""Train without an adapter, for comparison: the head alone, or all weights."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import (
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from lorakit.config import LoraConfig
from lorakit.files.atomic import scratch_directory
from lorakit.injection import Injection, count_parameters
from lorakit.recipes.recipe import Recipe
from lorakit.training.setup import Setup, prepare

HEAD_ONLY, FULL = "head only", "full fine-tuning"
COMPARED = (HEAD_ONLY, FULL)

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


class StepReporter(TrainerCallback):
    """Emits an event for each optimizer step, as a LoRA run does."""

    def __init__(self, emit: OnEvent) -> None:
        self._emit = emit

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Emit the end of a step."""
        self._step(state, {}, logged=False)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Emit the loss and learning rate."""
        if logs and "loss" in logs:
            self._step(state, logs, logged=True)

    def _step(self, state: TrainerState, values: dict[str, Any], *, logged: bool) -> None:
        payload = {"step": state.global_step, "max_steps": state.max_steps, "epoch": state.epoch}
        payload |= {key: values.get(key) for key in ("loss", "learning_rate")}
        self._emit("step", {**payload, "logged": logged})


def train_without_adapter(
    recipe: Recipe, method: str, learning_rate: float, on_event: OnEvent
) -> MethodResult:
    """Train without an adapter on the data of a recipe, with its seed and schedule.

    Only the measurements are kept.

    Args:
        recipe: Recipe of the LoRA run.
        method: `HEAD_ONLY` freezes the base; `FULL` trains all weights.
        learning_rate: Learning rate of the method.
        on_event: Called with each "step".

    Returns:
        Measurements with the accuracy of the best epoch, like that of the LoRA run.
    """

    def attach(model: PreTrainedModel) -> Injection:
        model.base_model.requires_grad_(method == FULL)
        heads = tuple(name for name, _ in model.named_children() if name != model.base_model_prefix)
        return Injection(method, LoraConfig(), (), heads, (), (), "none", str(model.dtype))

    def ignore_event(name: str, payload: dict[str, Any]) -> None:
        """Ignore an event: the LoRA run has shown the data already."""

    with scratch_directory("lorakit-quickstart-") as scratch:
        changes = {
            "learning_rate": learning_rate,
            "save_strategy": "no",
            "load_best_model_at_end": False,
        }
        plain = recipe.model_copy(
            update={"output": str(scratch), "training": {**recipe.training, **changes}}
        )
        setup = prepare(plain, ignore_event, attach=attach)
        start_s = time.perf_counter()
        accuracies = train_and_evaluate(setup, on_event)
        duration_s = time.perf_counter() - start_s
    trained = [p for p in setup.model.parameters() if p.requires_grad]
    return MethodResult(
        method=method,
        accuracy_before=accuracies[0],
        accuracy=max(accuracies[1:]),
        trainable_parameters=count_parameters(setup.model).trainable,
        saved_bytes=sum(p.numel() * p.element_size() for p in trained),
        duration_s=duration_s,
    )


def train_and_evaluate(setup: Setup, on_event: OnEvent) -> list[float]:
    """Train with a plain trainer; return the accuracy before training and after every epoch."""
    trainer = setup.task.build_trainer(
        setup,
        setup.encoded,
        setup.arguments,
        [StepReporter(on_event)],
        setup.task.base_trainer_class,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [row["eval_accuracy"] for row in trainer.state.log_history if "eval_accuracy" in row]

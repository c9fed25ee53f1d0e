"""What LoRA is compared with: training the head alone, and training every weight."""

import time
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
from lorakit.quickstart.results import MethodResult, OnEvent
from lorakit.recipes.recipe import Recipe
from lorakit.training.setup import Setup, prepare

HEAD_ONLY, FULL = "head only", "full fine-tuning"
COMPARED = (HEAD_ONLY, FULL)


class StepTeller(TrainerCallback):
    """Tells of each optimizer step, as a LoRA run does."""

    def __init__(self, tell: OnEvent) -> None:
        self._tell = tell

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell that a step is done."""
        self._step(state, {}, logged=False)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell the loss and learning rate."""
        if logs and "loss" in logs:
            self._step(state, logs, logged=True)

    def _step(self, state: TrainerState, values: dict[str, Any], *, logged: bool) -> None:
        payload = {"step": state.global_step, "max_steps": state.max_steps, "epoch": state.epoch}
        payload |= {key: values.get(key) for key in ("loss", "learning_rate")}
        self._tell("step", {**payload, "logged": logged})


def train_plainly(
    recipe: Recipe, method: str, learning_rate: float, on_event: OnEvent
) -> MethodResult:
    """Train without an adapter on a recipe's data, with its seed and schedule.

    Nothing is kept but the numbers.

    Args:
        recipe: The LoRA run's recipe.
        method: `HEAD_ONLY` freezes the base; `FULL` trains every weight.
        learning_rate: The method's own.
        on_event: Told of each "step".

    Returns:
        The accuracy at the best epoch, as the LoRA run keeps its best one.
    """

    def attach(model: PreTrainedModel) -> Injection:
        model.base_model.requires_grad_(method == FULL)
        heads = tuple(name for name, _ in model.named_children() if name != model.base_model_prefix)
        return Injection(method, LoraConfig(), (), heads, (), (), "none", str(model.dtype))

    def silent(name: str, payload: dict[str, Any]) -> None:
        """Take no notice: the LoRA run has shown the data already."""

    with scratch_directory("lorakit-quickstart-") as scratch:
        changes = {
            "learning_rate": learning_rate,
            "save_strategy": "no",
            "load_best_model_at_end": False,
        }
        plain = recipe.model_copy(
            update={"output": str(scratch), "training": {**recipe.training, **changes}}
        )
        setup = prepare(plain, silent, attach=attach)
        began_s = time.perf_counter()
        accuracies = fitted_accuracies(setup, on_event)
        duration_s = time.perf_counter() - began_s
    trained = [p for p in setup.model.parameters() if p.requires_grad]
    return MethodResult(
        method=method,
        accuracy_before=accuracies[0],
        accuracy=max(accuracies[1:]),
        trainable_parameters=count_parameters(setup.model).trainable,
        saved_bytes=sum(p.numel() * p.element_size() for p in trained),
        duration_s=duration_s,
    )


def fitted_accuracies(setup: Setup, on_event: OnEvent) -> list[float]:
    """Train with an ordinary trainer; return the accuracy before and after every epoch."""
    trainer = setup.task.build_trainer(
        setup.model,
        setup.tokenizer,
        setup.encoded,
        setup.arguments,
        setup.labels,
        [StepTeller(on_event)],
        setup.task.base_trainer_class,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return [row["eval_accuracy"] for row in trainer.state.log_history if "eval_accuracy" in row]

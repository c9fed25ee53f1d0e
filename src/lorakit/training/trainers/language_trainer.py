"""TRL's SFTTrainer, with a loss in chunks of tokens and metrics over all counted tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from lorakit.data.packing import PackCollator, asks_to_pack, isolating_collator
from lorakit.data.tokenize_examples import probe_tokens
from lorakit.errors import ConfigError
from lorakit.training.losses.find_output_loss import all_logits_note, find_output_loss
from lorakit.training.losses.output_loss import OutputLoss
from lorakit.training.losses.token_loss import TokenLoss
from lorakit.training.step import MeanStep, OutputStep, Step
from lorakit.training.trainers.step_trainer import StepTrainerMixin


class LanguageTrainer(StepTrainerMixin, SFTTrainer):
    """SFTTrainer for a model whose adapters are layers of the model.

    - The loss is computed in chunks of tokens from the inputs of the output layer, which may be
      adapted (TRL's chunked loss reads the layer's base weight and ignores the adapter, and on a
      CPU it computes the logits of up to 4,096 tokens at once). If the model transforms its logits
      in an unknown way, it computes its loss itself, and `notes` says so.
    - `eval_loss` is the mean over all counted tokens, not over batches, and never smoothed, so
      `eval_perplexity` = exp(eval_loss) does not depend on the batch size.
    - Packed texts are trained on as if they were separate, or it is an error.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        original_forward = vars(model).get("forward")
        with _hide_quantization(model):
            super().__init__(model, *args, **kwargs)
        # TRL replaces the model's forward for a loss that is not used here.
        vars(model).pop("forward", None)
        if original_forward is not None:
            model.forward = original_forward
        if asks_to_pack(vars(self.args)):
            self.data_collator = self._find_collator(model)
        self._loss_type = getattr(self.args, "loss_type", "nll")
        self.use_step(self._make_step(self._find_loss(model)))

    def pack_collators(self) -> list[DataCollatorForLanguageModeling]:
        """Return the collators for packed sequences, in order of preference."""
        given: Any = self.data_collator
        pad, multiple = given.pad_token_id, given.pad_to_multiple_of
        flat = DataCollatorForLanguageModeling(pad, padding_free=True, pad_to_multiple_of=multiple)
        if getattr(self.args, "padding_free", False):
            return [flat]
        return [PackCollator(pad, pad_to_multiple_of=multiple), flat]

    def _find_collator(self, model: Any) -> DataCollatorForLanguageModeling:
        """Choose a collator in whose batches packed texts do not attend to each other."""
        ids = probe_tokens(self.train_dataset, "input_ids")[0].tolist()
        given = vars(self.args)
        return isolating_collator(model, self.pack_collators(), ids, given, self.precision(model))

    def _find_loss(self, model: Any) -> OutputLoss | None:
        ids = probe_tokens(self.train_dataset, "input_ids").to(model.device)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True
        weight = self.router_aux_loss_coef if self.aux_loss_enabled else 0.0
        found, reason = find_output_loss(model, inputs, ids, auxiliary_weight=weight)
        if found is not None:
            return found
        if self._loss_type != "nll":
            raise ConfigError(
                f"This {type(model).__name__} cannot be trained with training.loss_type="
                f"{self._loss_type}: {reason}; expected a model whose loss is the cross entropy of "
                "its output layer. Leave training.loss_type out."
            )
        self.notes = (all_logits_note(model, reason),)
        return None

    def _make_step(self, output: OutputLoss | None) -> Step:
        options: dict[str, Any] = {"use_cache": False}
        if self.aux_loss_enabled:
            options["output_router_logits"] = True
        smoother = self.label_smoother
        if output is None:
            return MeanStep(
                shifts=True, options=options, smoother=smoother, smooths_evaluation=False
            )
        if self._loss_type == "dft":
            if smoother is not None:
                raise ConfigError(
                    "training.loss_type=dft is never smoothed: got training.label_smoothing_factor="
                    f"{smoother.epsilon}, expected 0. Leave one of them out."
                )
            loss = TokenLoss(weighs_by_probability=True)
        else:
            loss = TokenLoss(label_smoothing=0.0 if smoother is None else smoother.epsilon)
        weight = self.router_aux_loss_coef if self.aux_loss_enabled else 0.0
        return OutputStep(
            shifts=True,
            options=options,
            output=output,
            token_loss=loss,
            auxiliary_weight=weight,
            smooths_evaluation=False,
        )

    def count_tokens(self, tokens: int) -> None:
        """Add to the training tokens without padding, which are logged as `num_tokens`."""
        self._total_train_tokens += tokens
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; in training with the number of tokens of all processes."""
        counts = self._metrics["train"]
        if "num_tokens" in counts:
            local = torch.tensor(counts["num_tokens"], device=self.args.device)
            counts["num_tokens"] = self.accelerator.reduce(local, "sum").tolist()  # type: ignore[union-attr]  # a tensor gives a tensor
        super().log(logs, start_time)

    def loss_metrics(self, loss: float, accuracy: float | None) -> dict[str, float]:
        """Return loss, perplexity and token accuracy over all counted tokens."""
        metrics = {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
        return metrics if accuracy is None else {**metrics, "mean_token_accuracy": accuracy}


@contextmanager
def _hide_quantization(model: Any) -> Iterator[None]:
    """Prevent TRL from casting the adapter to bfloat16, as it does on any quantized base.

    Small updates are lost in bfloat16, and lorakit chooses the dtype of the factors.
    """
    names = ("is_loaded_in_4bit", "is_loaded_in_8bit")
    hidden = {name: vars(model).pop(name) for name in names if name in vars(model)}
    try:
        yield
    finally:
        vars(model).update(hidden)

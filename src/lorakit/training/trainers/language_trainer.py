"""TRL's SFTTrainer, with a loss in chunks of tokens and metrics over all counted tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

from lorakit.config import NOT_COUNTED
from lorakit.data.packing import PackCollator, asks_to_pack, isolating_collator
from lorakit.data.tokenize_examples import probe_tokens
from lorakit.errors import ConfigError
from lorakit.training.losses.output_loss import (
    OutputLoss,
    TokenLoss,
    all_logits_note,
    find_output_loss,
)
from lorakit.training.throughput import real_tokens


@contextmanager
def _hiding_quantization(model: Any) -> Iterator[None]:
    """Prevent TRL from casting the adapter to bfloat16, as it does on any quantised base.

    Small updates are lost in bfloat16, and lorakit chooses the dtype of the factors.
    """
    names = ("is_loaded_in_4bit", "is_loaded_in_8bit")
    hidden = {name: vars(model).pop(name) for name in names if name in vars(model)}
    try:
        yield
    finally:
        vars(model).update(hidden)


class LanguageTrainer(SFTTrainer):
    """SFTTrainer for a model whose adapters are layers of the model.

    - The loss is computed in chunks of tokens from the inputs of the output layer, which may be
      adapted (TRL's chunked loss reads the layer's base weight and ignores the adapter, and on a
      CPU it computes the logits of up to 4,096 tokens at once). If the model transforms its logits
      in an unknown way, it computes its loss itself, and `notes` says so.
    - `eval_loss` is the mean over all counted tokens, not over batches, and never smoothed, so
      `eval_perplexity` = exp(eval_loss) does not depend on the batch size.
    - Packed texts are trained on as if they were separate, or it is an error.
    """

    _nll_sum: float = 0.0
    _counted_tokens: int = 0
    _hits: int | None = 0

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        original_forward = vars(model).get("forward")
        with _hiding_quantization(model):
            super().__init__(model, *args, **kwargs)
        # TRL replaces the model's forward for a loss that is not used here.
        vars(model).pop("forward", None)
        if original_forward is not None:
            model.forward = original_forward
        if asks_to_pack(vars(self.args)):
            self.data_collator = self._find_collator(model)
        self._loss_type = getattr(self.args, "loss_type", "nll")
        self.notes: tuple[str, ...] = ()
        self._output_loss = self._find_loss(model)
        if self._output_loss is not None:
            # The loss divides by the tokens of all accumulated batches, whatever the model does.
            self.model_accepts_loss_kwargs = True
            self._loss_shifts_labels = True

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
        half = torch.bfloat16 if self.args.bf16 else torch.float16
        is_half = self.args.bf16 or self.args.fp16
        precision = torch.autocast(model.device.type, half, enabled=is_half)
        ids = probe_tokens(self.train_dataset, "input_ids")[0].tolist()
        return isolating_collator(model, self.pack_collators(), ids, vars(self.args), precision)

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

    @property
    def _token_loss(self) -> TokenLoss:
        if self._loss_type == "dft":
            return TokenLoss(weighs_by_probability=True)
        smoother = self.label_smoother
        return TokenLoss(label_smoothing=smoother.epsilon if smoother is not None else 0.0)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the mean loss of a batch, or its share of the mean over a step.

        Args:
            model: The model, possibly wrapped.
            inputs: A batch with labels.
            return_outputs: Whether to return the model's outputs too, with the logits of a single
                token.
            num_items_in_batch: Number of counted tokens of an optimizer step; None for this batch
                only.
        """
        if model.training:
            self._count_tokens(inputs)
        given: dict[str, Any] = {**inputs, "use_cache": False}
        if self.aux_loss_enabled:
            given["output_router_logits"] = True
        if self._output_loss is None:
            return Trainer.compute_loss(self, model, given, return_outputs, num_items_in_batch)
        labels = given.pop("labels")
        outputs, hidden = self._output_loss.run(model, given)
        loss = self._output_loss.share(hidden, labels, self._token_loss, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes
        if self.aux_loss_enabled:
            batches = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss / batches
        return (loss, outputs) if return_outputs else loss

    def _count_tokens(self, inputs: dict[str, Any]) -> None:
        """Count the training tokens without padding; logged as `num_tokens`."""
        self._total_train_tokens += int(real_tokens(inputs))
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; in training with the number of tokens of all processes."""
        counts = self._metrics["train"]
        if "num_tokens" in counts:
            local = torch.tensor(counts["num_tokens"], device=self.args.device)
            counts["num_tokens"] = self.accelerator.reduce(local, "sum").tolist()  # type: ignore[union-attr]
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, None, None]:
        """Return a batch's loss without label smoothing, and record its sums."""
        inputs = self._prepare_inputs(inputs)
        counted = int((inputs["labels"][:, 1:] != NOT_COUNTED).sum())
        with torch.no_grad(), self.compute_loss_context_manager():
            if self._output_loss is None:
                loss: Tensor = model(**{**inputs, "use_cache": False})["loss"]
                nll_sum, self._hits = loss * counted, None
            else:
                given = {key: value for key, value in inputs.items() if key != "labels"}
                _, hidden = self._output_loss.run(model, {**given, "use_cache": False})
                x2d, targets = self._output_loss.counted(hidden, inputs["labels"])
                nll_sum, hits = self._output_loss.sum_and_hits(x2d, targets)
                self._hits = (self._hits or 0) + int(hits)
        self._nll_sum += float(nll_sum)
        self._counted_tokens += counted
        return nll_sum / max(counted, 1), None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; loss, perplexity and accuracy are over all counted tokens."""
        self._nll_sum, self._counted_tokens, self._hits = 0.0, 0, 0
        output = super().evaluation_loop(*args, **kwargs)
        hits = -1 if self._hits is None else self._hits
        sums = torch.tensor(
            [self._nll_sum, self._counted_tokens, hits],
            device=self.args.device,
            dtype=torch.float32,
        )
        nll_sum, tokens, hits = self.accelerator.reduce(sums, "sum").tolist()  # type: ignore[union-attr]
        prefix = kwargs.get("metric_key_prefix", "eval")
        if tokens and output.metrics is not None:
            loss = nll_sum / tokens
            output.metrics[f"{prefix}_loss"] = loss
            output.metrics[f"{prefix}_perplexity"] = math.exp(loss) if loss < 700 else math.inf
            if hits >= 0:
                output.metrics[f"{prefix}_mean_token_accuracy"] = hits / tokens
        return output

"""TRL's SFTTrainer, with the loss and perplexity of evaluation counted token by token."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput
from trl.trainer.sft_trainer import SFTTrainer

from lorakit.layers import AdaptedLayer, ReplacedModule
from lorakit.training.tasks.rows import NOT_COUNTED


class LanguageTrainer(SFTTrainer):
    """SFTTrainer for a model whose adapters are layers of its own.

    - `eval_loss` is the mean over all counted tokens, not over batches, and never smoothed, so
      that `eval_perplexity` = exp(eval_loss) does not depend on the batch size.
    - Where the output layer itself is adapted, the loss comes from the model's own logits: TRL's
      fused loss reads that layer's base weight and would leave the adapter out.
    """

    _nll_sum: float = 0.0
    _counted_tokens: int = 0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return the loss of a batch, adapted output layer included."""
        if not _has_adapted_output(self.model):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        plain = {**inputs, "use_cache": False}
        return Trainer.compute_loss(self, model, plain, return_outputs, num_items_in_batch)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """Return a batch's loss without smoothing, and remember how many tokens it stands for."""
        smoother, self.label_smoother = self.label_smoother, None
        try:
            step = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self.label_smoother = smoother
        counted = int((inputs["labels"][:, 1:] != NOT_COUNTED).sum())
        self._nll_sum += float(step[0]) * counted
        self._counted_tokens += counted
        return step

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Evaluate; the loss and perplexity are those of all counted tokens together."""
        self._nll_sum, self._counted_tokens = 0.0, 0
        output = super().evaluation_loop(*args, **kwargs)
        sums = torch.tensor([self._nll_sum, self._counted_tokens], device=self.args.device)
        nll_sum, tokens = self.accelerator.reduce(sums, "sum").tolist()  # type: ignore[union-attr]
        prefix = kwargs.get("metric_key_prefix", "eval")
        is_likelihood = getattr(self.args, "loss_type", "nll") == "nll"
        if tokens and output.metrics is not None and is_likelihood:
            loss = nll_sum / tokens
            output.metrics[f"{prefix}_loss"] = loss
            output.metrics[f"{prefix}_perplexity"] = math.exp(loss) if loss < 700 else math.inf
        return output


def _has_adapted_output(model: Any) -> bool:
    output = model.get_output_embeddings()
    parts = () if output is None else output.modules()
    return any(isinstance(part, (AdaptedLayer, ReplacedModule)) for part in parts)

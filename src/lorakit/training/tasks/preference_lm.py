"""CAUSAL_LM by an objective: prompts with two answers, or answers with votes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import (
    Trainer,
    TrainingArguments,
)

from lorakit.analysis.baselines import Guess, guess_vote
from lorakit.data.answers import AnswerCollator
from lorakit.data.preferences import VOTES_KEY
from lorakit.data.text_formats import require_end_token
from lorakit.data.tokenizers import pad_id
from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.training.objectives import Objective
from lorakit.training.objectives.direct import DPO, IPO
from lorakit.training.objectives.odds_ratio import ORPO
from lorakit.training.objectives.votes import KTO
from lorakit.training.tasks.answers_task import AnswersTask
from lorakit.training.tasks.base import Encoded, Loaded, Task
from lorakit.training.tasks.causal_lm import CausalLM, stop_tokens
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.preference_trainer import PreferenceTrainer

if TYPE_CHECKING:
    from datasets import Dataset

    from lorakit.data import Splits
    from lorakit.recipes.recipe import Recipe

LEARNING_RATE = 1e-5
"""Default of `learning_rate`: ten times TRL's, which is one for full fine-tuning."""


class AdapterPreferenceTrainer(AdapterTrainerMixin, PreferenceTrainer):
    """Trains an adapter by an objective."""


class PreferenceLM(AnswersTask, CausalLM):
    """Prefer one answer to another."""

    best_metric: ClassVar[str] = "eval_loss"
    base_trainer_class: ClassVar[type[Trainer]] = PreferenceTrainer
    trainer_class: ClassVar[type[Trainer]] = AdapterPreferenceTrainer

    def __init__(self, config: ObjectiveConfig):
        """Create the task of an `objective:` section."""
        super().__init__(config)
        self.objective = objective_for(config)
        self.needs_reference = self.objective.needs_reference
        self.counts_prompts = self.objective.counts_prompts

    def default_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return the defaults of CAUSAL_LM, with a lower learning rate."""
        return {**super().default_arguments(recipe), "learning_rate": LEARNING_RATE}

    def label_column(self, recipe: Recipe) -> str | None:
        """Return the column of votes, if examples have any."""
        return recipe.data.label if self.config.reads_votes else None

    def encode(self, splits: Splits, loaded: Loaded) -> Encoded:
        """Tokenize each prompt with its two answers, whose end token counts too."""
        require_end_token(loaded.tokenizer)
        return super().encode(splits, loaded)

    def answer_settings(self, examples: Dataset, loaded: Loaded) -> dict[str, Any]:
        """Return what ends an answer, and the system prompt."""
        return {
            "stop_token_ids": stop_tokens(examples, loaded.tokenizer),
            "system_prompt": loaded.recipe.data.system_prompt,
        }

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return what the objective reports."""
        return self.objective.metric_names

    def guess(self, loaded: Loaded, known: Any, examples: Any) -> Guess | None:
        """Return the commonest vote; None for pairs, whose likelier answer the base has too."""
        return (
            guess_vote(known[VOTES_KEY], examples[VOTES_KEY][:])
            if self.config.reads_votes
            else None
        )

    def trainer_options(
        self, loaded: Loaded, encoded: Encoded, arguments: TrainingArguments
    ) -> dict[str, Any]:
        """Return the collator of answers and the objective."""
        arguments.remove_unused_columns = False  # the model does not take all columns
        multiple = getattr(arguments, "pad_to_multiple_of", None)
        collator = AnswerCollator(pad_id(loaded.tokenizer), pad_to_multiple_of=multiple)
        return {"data_collator": collator, "objective": self.objective}

    def build_trainer(self, *args: Any, **kwargs: Any) -> Trainer:
        """Build the trainer, which is not TRL's."""
        return Task.build_trainer(self, *args, **kwargs)


def objective_for(config: ObjectiveConfig) -> Objective:
    """Return the objective of a language model that a section describes."""
    match config.type:
        case "dpo":
            return DPO(config.beta, config.sft_weight, config.loss, config.length_normalized)
        case "ipo":
            return IPO(config.beta, config.sft_weight)
        case "orpo":
            return ORPO(config.beta)
        case _:
            return KTO(config.beta, config.desirable_weight, config.undesirable_weight)

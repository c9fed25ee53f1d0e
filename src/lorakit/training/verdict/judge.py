"""Compare an adapter with its base on the validation examples and on neutral text."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from lorakit.analysis.example_scores import ExampleScores
from lorakit.analysis.verdict import (
    Comparison,
    Forgetting,
    Verdict,
    compare_all,
    measure_forgetting,
)
from lorakit.config import NOT_COUNTED, TaskType
from lorakit.data.tokenizers import token_ids
from lorakit.errors import TrainingError
from lorakit.injection import disable_adapters
from lorakit.models.pretrained import model_limit
from lorakit.training.callbacks import EventHandler
from lorakit.training.predicted import Predicted
from lorakit.training.setup import Setup
from lorakit.training.tasks.base import seed_of
from lorakit.training.trainers.kept_predictions import KeptEvaluation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin

_BASE = "the base"
_MOST_TOKENS = 256
"""Largest number of tokens of a neutral passage; only byte-level tokenizers reach it."""
_NOT_A_NUMBER = "{} is not compared: the loss of {} is not a number."


@dataclass(frozen=True)
class Judgement:
    """The verdict on an adapter, and what it was found from."""

    verdict: Verdict
    base: Predicted | None
    """Predictions of the base for the examples; None if it was not asked for any."""
    wall_s: float
    """Seconds that the comparison took."""


def judge(
    setup: Setup,
    trainer: AdapterTrainerMixin,
    found: KeptEvaluation | None,
    emit: EventHandler,
    *,
    known: Dataset | None = None,
    base: KeptEvaluation | None = None,
) -> Judgement:
    """Compare the adapter of a model with its base; all processes must call this.

    Args:
        setup: Recipe, model and examples.
        trainer: The trainer that has evaluated the adapter.
        found: What the adapter's evaluation found; None if there was none.
        emit: Receives the event "comparing" before the base is measured.
        known: Encoded examples to make a guess from; None takes the training examples.
        base: What the base's evaluation found; None evaluates it here.
    """
    started_s = time.perf_counter()
    made = _Judge(setup, trainer, emit, known, base, seed_of(setup.recipe))
    verdict = made.verdict(found)
    return Judgement(verdict, made.base, time.perf_counter() - started_s)


@dataclass
class _Judge:
    """Compares one adapter with its base."""

    setup: Setup
    trainer: AdapterTrainerMixin
    emit: EventHandler
    known: Dataset | None
    evaluated: KeptEvaluation | None
    seed: int
    notes: list[str] = field(default_factory=list)
    base: Predicted | None = None
    """Predictions of the base, once it has been asked for them."""

    def verdict(self, found: KeptEvaluation | None) -> Verdict:
        """Return the verdict.

        Args:
            found: What the adapter's evaluation found.
        """
        compared: tuple[Comparison, ...] = ()
        if found is None:
            self.notes.append("Adapter and base are not compared: the run has no evaluation.")
        else:
            compared = self._compare(found)
        forgetting = self._forgetting()
        return Verdict(
            compared[0] if compared else None,
            forgetting,
            tuple(self.notes),
            compared[1:],
            None if found is None else found.divergence,
        )

    # ---- the validation examples ----

    def _compare(self, found: KeptEvaluation) -> tuple[Comparison, ...]:
        """Return the comparisons by each metric, the main one first."""
        before, baseline = self._baseline()
        after = found.scores
        if [one.metric for one in before] != [one.metric for one in after] or not after:
            if before:
                self.notes.append(
                    "Adapter and base are not compared: the evaluation keeps no predictions."
                )
            return ()
        for scores, which in ((before, "the base"), (after, "the adapter")):
            if not all(one.is_finite for one in scores):
                self.notes.append(_NOT_A_NUMBER.format("The adapter", which))
                return ()
        return compare_all(before, after, baseline, self.seed)

    def _baseline(self) -> tuple[tuple[ExampleScores, ...], str]:
        """Return the scores of the base, or of what stands in for it, and its name."""
        setup = self.setup
        known: Any = setup.encoded.train if self.known is None else self.known
        examples: Any = setup.encoded.validation
        guess = setup.task.guess(setup, known, examples)
        if guess is not None:
            self.notes.append(guess.note)
            if self.known is not None and guess.knows_examples:
                self.notes.append("The guess is computed from the measured examples.")
            return guess.scores, guess.baseline
        wanted = setup.recipe.evaluation.examples_in_prompt
        if wanted:
            return self._base_with_examples(known, examples, wanted)
        base = self._evaluate_base()
        self.base = None if base is None else base.predicted
        return () if base is None else base.scores, _BASE

    def _evaluate_base(self) -> KeptEvaluation | None:
        """Evaluate the base as the adapter was evaluated, without logging."""
        if self.evaluated is not None:
            return self.evaluated
        self._announce()
        trainer = self.trainer
        try:
            with trainer.evaluating_apart(), disable_adapters(self.setup.model):
                trainer.evaluate(metric_key_prefix="base")
                return trainer.evaluation_at(trainer.state.global_step)
        except TrainingError:  # the adapter is trained all the same
            self.notes.append(_NOT_A_NUMBER.format("The adapter", _BASE))
            return None

    def _base_with_examples(
        self, known: Any, examples: Any, wanted: int
    ) -> tuple[tuple[ExampleScores, ...], str]:
        """Return the base's loss of each example after solved ones."""
        self._announce()
        limit = model_limit(self.setup.model)
        shown = with_examples_in_prompt(examples, known, wanted, limit, self.seed)
        self.notes.append(
            f"The base is shown {wanted} training examples before each validation example, or as "
            "many as fit."
        )
        losses = self._losses(shown, use_base=True)
        return () if losses is None else (losses,), f"the base with {wanted} examples in its prompt"

    def _announce(self) -> None:
        self.emit("comparing", {"examples": len(self.setup.splits.validation or ())})

    # ---- neutral text ----

    def _forgetting(self) -> Forgetting | None:
        if self.setup.task.task_type is not TaskType.CAUSAL_LM:
            return None
        texts = encode_neutral_text(self.setup.model, self.setup.tokenizer)
        before, after = (self._losses(texts, use_base=use_base) for use_base in (True, False))
        if before is None or after is None:
            self.notes.append("What is forgotten is not measured: this model has no loss by text.")
            return None
        if not (before.is_finite and after.is_finite):
            which = "the adapter" if before.is_finite else "the base"
            note = _NOT_A_NUMBER.format("Neutral text", f"{which} on it")
            self.notes.append(note)
            return None
        return measure_forgetting(before, after, self.seed)

    def _losses(self, examples: Dataset, *, use_base: bool) -> ExampleScores | None:
        """Return the loss of each example, which may differ from the run's."""
        trainer: Any = self.trainer
        with ExitStack() as held:
            held.enter_context(trainer.evaluating_apart())
            held.enter_context(trainer.as_language_model())
            if use_base:
                held.enter_context(disable_adapters(self.setup.model))
            loader = trainer.get_test_dataloader(examples)
            trainer.evaluation_loop(
                loader, "Comparison", prediction_loss_only=True, metric_key_prefix="base"
            )
            found = trainer.evaluation_at(trainer.state.global_step)
        return None if found is None else found.example_scores


def with_examples_in_prompt(
    examples: Dataset, known: Dataset, wanted: int, limit: int | None, seed: int
) -> Dataset:
    """Put solved examples before each example; their tokens do not count.

    Args:
        examples: Encoded examples with "input_ids" and "labels".
        known: Encoded examples to choose from, the same for all.
        wanted: Number of examples to put before each.
        limit: Maximum number of tokens; examples that do not fit are left out.
        seed: Seed of the choice.
    """
    chosen = np.random.default_rng(seed).permutation(len(known))[:wanted].tolist()
    shown = [known[index]["input_ids"] for index in chosen]

    def extend(example: Mapping[str, Any]) -> dict[str, list[int]]:
        ids: list[int] = []
        for solved in shown:
            if limit is None or len(ids) + len(solved) + len(example["input_ids"]) <= limit:
                ids += solved
        # A first token is never predicted, so it does not count here either.
        labels = [NOT_COUNTED] * (len(ids) + 1) + list(example["labels"][1:])
        return {"input_ids": ids + list(example["input_ids"]), "labels": labels}

    made: list[dict[str, list[int]]] = [extend(example) for example in examples]  # type: ignore[arg-type]  # rows are dictionaries
    return Dataset.from_list(made)


def neutral_passages() -> list[str]:
    """Return passages that show what training made a model forget, written for this purpose."""
    path = files("lorakit.training.verdict") / "neutral_text.txt"
    return path.read_text(encoding="utf-8").strip().split("\n\n")


def encode_neutral_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Tokenize the passages for a causal language model; every token but the first counts."""
    limit = min(model_limit(model) or _MOST_TOKENS, _MOST_TOKENS)
    ids = [token_ids(tokenizer, passage)[:limit] for passage in neutral_passages()]
    ids = [passage for passage in ids if len(passage) > 1]
    return Dataset.from_dict({"input_ids": ids, "labels": ids})

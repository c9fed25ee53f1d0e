"""Compare an adapter with its base on the validation examples and on neutral text."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from lorakit.analysis.example_scores import ExampleScores, scores_of_classes, scores_of_tags
from lorakit.analysis.verdict import Comparison, Forgetting, Verdict, compare, measure_forgetting
from lorakit.config import NOT_COUNTED, TaskType
from lorakit.data.tokenizers import token_ids
from lorakit.errors import TrainingError
from lorakit.injection import disable_adapters
from lorakit.models.pretrained import fresh_modules, model_limit
from lorakit.training.callbacks import EventHandler
from lorakit.training.predicted import Predicted
from lorakit.training.setup import Setup
from lorakit.training.tasks.base import seed_of
from lorakit.training.trainers.kept_predictions import KeptEvaluation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin

_BASE = "the base"
_BATCH = 1000
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
        known: Encoded examples whose classes a guess may know; None takes the training examples.
        base: What the base's evaluation found; None evaluates it here.
    """
    known = setup.encoded.train if known is None else known
    return _Judge(setup, trainer, emit, known, base).judge(found)


class _Judge:
    """Compares one adapter with its base."""

    def __init__(
        self,
        setup: Setup,
        trainer: AdapterTrainerMixin,
        emit: EventHandler,
        known: Dataset,
        evaluated: KeptEvaluation | None,
    ):
        self._started_s = time.perf_counter()
        self._setup, self._trainer, self._emit, self._known = setup, trainer, emit, known
        self._evaluated = evaluated
        self._seed = seed_of(setup.recipe)
        self._notes: list[str] = []
        self._base: Predicted | None = None

    def judge(self, found: KeptEvaluation | None) -> Judgement:
        """Return the verdict.

        Args:
            found: What the adapter's evaluation found.
        """
        comparison = None
        if found is None:
            self._notes.append("Adapter and base are not compared: the run has no evaluation.")
        else:
            comparison = self._compare(found)
        verdict = Verdict(comparison, self._forgetting(), tuple(self._notes))
        return Judgement(verdict, self._base, time.perf_counter() - self._started_s)

    # ---- the validation examples ----

    def _compare(self, found: KeptEvaluation) -> Comparison | None:
        setup, predicted = self._setup, found.predicted
        if setup.labels is not None and predicted is not None and fresh_modules(setup.model):
            before, baseline = self._guess(predicted, setup.labels)
            after = predicted.scores
        elif predicted is not None:
            base = self._evaluate_base()
            self._base = None if base is None else base.predicted
            before, after = None if self._base is None else self._base.scores, predicted.scores
            baseline = _BASE
        else:
            before, baseline = self._base_losses()
            after = found.losses
        if before is None or after is None:
            return None
        if not (before.is_finite and after.is_finite):
            which = "the adapter" if before.is_finite else "the base"
            self._notes.append(_NOT_A_NUMBER.format("The adapter", which))
            return None
        return compare(before, after, baseline, self._seed)

    def _guess(self, predicted: Predicted, labels: Sequence[str]) -> tuple[ExampleScores, str]:
        """Score a guess: the base has no trained head, so it cannot answer."""
        is_words = self._setup.task.task_type is TaskType.TOKEN_CLS
        best = commonest_label(self._known)
        guessed = np.full_like(predicted.expected, best)
        what = "tag" if is_words else "class"
        self._notes.append(
            f"The base has no trained head, so the adapter is compared with guessing the commonest "
            f"{what} ('{labels[best]}') every time."
        )
        if is_words:
            scores = scores_of_tags(predicted.expected, guessed, labels)
        else:
            scores = scores_of_classes(predicted.expected, guessed)
        return scores, f"guessing the commonest {what}"

    def _evaluate_base(self) -> KeptEvaluation | None:
        """Evaluate the base as the adapter was evaluated, without logging."""
        if self._evaluated is not None:
            return self._evaluated
        self._announce()
        trainer = self._trainer
        try:
            with trainer.evaluating_apart(), disable_adapters(self._setup.model):
                trainer.evaluate(metric_key_prefix="base")
                return trainer.evaluation_at(trainer.state.global_step)
        except TrainingError:  # the adapter is trained all the same
            self._notes.append(_NOT_A_NUMBER.format("The adapter", _BASE))
            return None

    def _base_losses(self) -> tuple[ExampleScores | None, str]:
        """Return the base's loss of each validation example, and what it was shown."""
        examples: Any = self._setup.encoded.validation
        wanted = self._setup.recipe.evaluation.examples_in_prompt
        if not wanted:
            base = self._evaluate_base()
            return None if base is None else base.losses, _BASE
        self._announce()
        limit = model_limit(self._setup.model)
        shown = with_examples_in_prompt(examples, self._known, wanted, limit, self._seed)
        self._notes.append(
            f"The base is shown {wanted} training examples before each validation example, or as "
            "many as fit."
        )
        return self._losses(shown, use_base=True), f"the base with {wanted} examples in its prompt"

    def _announce(self) -> None:
        self._emit("comparing", {"examples": len(self._setup.encoded.validation or ())})

    # ---- neutral text ----

    def _forgetting(self) -> Forgetting | None:
        if self._setup.task.task_type is not TaskType.CAUSAL_LM:
            return None
        texts = encode_neutral_text(self._setup.model, self._setup.tokenizer)
        before, after = (self._losses(texts, use_base=use_base) for use_base in (True, False))
        if before is None or after is None:
            self._notes.append("What is forgotten is not measured: this model has no loss by text.")
            return None
        if not (before.is_finite and after.is_finite):
            which = "the adapter" if before.is_finite else "the base"
            note = _NOT_A_NUMBER.format("Neutral text", f"{which} on it")
            self._notes.append(note)
            return None
        return measure_forgetting(before, after, self._seed)

    def _losses(self, examples: Dataset, *, use_base: bool) -> ExampleScores | None:
        """Return the loss of each example, which may differ from the run's."""
        trainer = self._trainer
        with ExitStack() as held:
            held.enter_context(trainer.evaluating_apart())
            if use_base:
                held.enter_context(disable_adapters(self._setup.model))
            loader = trainer.get_test_dataloader(examples)
            trainer.evaluation_loop(
                loader, "Comparison", prediction_loss_only=True, metric_key_prefix="base"
            )
            found = trainer.evaluation_at(trainer.state.global_step)
        return None if found is None else found.losses


def commonest_label(examples: Any) -> int:
    """Return the most frequent label id of encoded examples; the lower one of two.

    Args:
        examples: Encoded examples, whose labels are ids or lists of ids.
    """
    counts: Counter[int] = Counter()
    for batch in examples.select_columns(["labels"]).iter(_BATCH):
        for label in batch["labels"]:
            counts.update(label if isinstance(label, list) else [label])
    del counts[NOT_COUNTED]
    return min(counts, key=lambda label: (-counts[label], label))


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

    made: list[dict[str, list[int]]] = [extend(example) for example in examples]  # type: ignore[arg-type]
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

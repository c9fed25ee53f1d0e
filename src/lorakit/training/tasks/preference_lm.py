"""CAUSAL_LM by an objective: prompts with two answers, or answers with votes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from datasets import Dataset, Features, Value
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from lorakit.analysis.baselines import Guess, guess_vote
from lorakit.data import Place, unused_note
from lorakit.data.answers import (
    FEATURES,
    AnswerCollator,
    EncodedAnswers,
    answer_encoder,
    join_answers,
)
from lorakit.data.conversations import TEMPLATE_VARIABLES, TOOLS
from lorakit.data.preferences import (
    PARTS,
    VOTES_KEY,
    PreferenceLayout,
    check_preferences,
    find_preferences,
    read_votes,
    two_answers,
)
from lorakit.data.text_formats import require_end_token
from lorakit.data.tokenize_examples import cut_note, first_examples, readable
from lorakit.data.tokenizers import pad_id
from lorakit.errors import DataError
from lorakit.models.pretrained import resolve_max_length
from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.training.objectives import Objective
from lorakit.training.objectives.direct import DPO, IPO
from lorakit.training.objectives.odds_ratio import ORPO
from lorakit.training.objectives.votes import KTO
from lorakit.training.tasks.base import Encoded, PreviewExample, Task
from lorakit.training.tasks.causal_lm import CausalLM, stop_tokens
from lorakit.training.tasks.language_layouts import refuse_chat_keys
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.preference_trainer import PreferenceTrainer

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import Recipe

LEARNING_RATE = 1e-5
"""Default of `learning_rate`: ten times TRL's, which is one for full fine-tuning."""


class AdapterPreferenceTrainer(AdapterTrainerMixin, PreferenceTrainer):
    """Trains an adapter by an objective."""


class PreferenceLM(CausalLM):
    """Prefer one answer to another."""

    best_metric: ClassVar[str] = "eval_loss"
    base_trainer_class: ClassVar[type[Trainer]] = PreferenceTrainer
    trainer_class: ClassVar[type[Trainer]] = AdapterPreferenceTrainer

    def __init__(self, config: ObjectiveConfig):
        """Create the task of an `objective:` section."""
        self.config = config
        self.objective = objective_for(config)
        self.needs_reference = self.objective.needs_reference

    def default_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Return the defaults of CAUSAL_LM, with a lower learning rate."""
        return {**super().default_arguments(recipe), "learning_rate": LEARNING_RATE}

    def label_column(self, recipe: Recipe) -> str | None:
        """Return the column of votes, if examples have any."""
        return recipe.data.label if self.config.reads_votes else None

    def encode(
        self,
        splits: Splits,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labels: tuple[str, ...] | None,
    ) -> Encoded:
        """Tokenize each prompt with its two answers, and mark the tokens that count."""
        max_length = resolve_max_length(recipe.data.max_length, model, tokenizer)
        require_end_token(tokenizer)
        encoded, cut, layout, notes = encode_answers(
            splits,
            recipe,
            tokenizer,
            self.config,
            max_length,
            counts_prompts=self.objective.counts_prompts,
        )
        settings = self.settings(
            recipe,
            model,
            max_length=max_length,
            format="messages" if layout.is_conversation else "prompt_completion",
            stop_token_ids=stop_tokens(encoded["training"], tokenizer),
            system_prompt=recipe.data.system_prompt,
        )
        notes = (*self.fresh_notes(recipe, model), *notes)
        return Encoded(
            *(encoded["training"], encoded.get("validation"), notes, settings), cut_examples=cut
        )

    def preview_examples(
        self,
        encoded: Encoded,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...] | None,
        n: int = 2,
    ) -> list[PreviewExample]:
        """Return the first examples as they are batched; a pair has its rejected answer beside."""
        return preview_answers(encoded, tokenizer, n)

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return what the objective reports."""
        return self.objective.metric_names

    def guess(
        self, model: PreTrainedModel, known: Any, examples: Any, labels: Sequence[str]
    ) -> Guess | None:
        """Return the commonest vote; None for pairs, whose likelier answer the base has too."""
        return (
            guess_vote(known[VOTES_KEY], examples[VOTES_KEY][:])
            if self.config.reads_votes
            else None
        )

    def trainer_options(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        arguments: TrainingArguments,
        labels: tuple[str, ...] | None,
    ) -> dict[str, Any]:
        """Return the collator of answers and the objective."""
        arguments.remove_unused_columns = False  # the model does not take all columns
        multiple = getattr(arguments, "pad_to_multiple_of", None)
        collator = AnswerCollator(pad_id(tokenizer), pad_to_multiple_of=multiple)
        return {"data_collator": collator, "objective": self.objective}

    def build_trainer(self, *args: Any, **kwargs: Any) -> Trainer:
        """Build the trainer, which is not TRL's."""
        return Task.build_trainer(self, *args, **kwargs)


def encode_answers(
    splits: Splits,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    config: ObjectiveConfig,
    max_length: int,
    *,
    counts_prompts: bool = False,
) -> tuple[dict[str, Dataset], int, PreferenceLayout, list[str]]:
    """Encode the examples of both splits.

    Returns: The examples by "training" and "validation", the number of training examples that were
        truncated, the layout, and notes.

    Raises:
        DataError: Lists every problem of the examples.
    """
    data = recipe.data
    layout = find_preferences(splits.train, data, config, splits.training_place(data))
    if not layout.is_conversation:
        refuse_chat_keys(data, layout.name)
    encode = answer_encoder(tokenizer, layout.is_conversation, recipe.model, data.system_prompt)
    used = [*layout.columns, *((TOOLS, TEMPLATE_VARIABLES) if layout.is_conversation else ())]
    notes = [*layout.notes, *unused_note(splits.train, used)]
    encoded: dict[str, Dataset] = {}
    cuts: dict[str, int] = {}
    for examples, kind, where in splits.with_places(data):
        if kind == "validation":
            find_preferences(examples, data, config, where)  # it has the columns of training
        check_preferences(examples, layout, where)

        def join(pair: Any) -> EncodedAnswers | None:
            return join_answers(
                *encode(pair),
                max_length,
                counts_prompt=counts_prompts,
                may_be_same=config.reads_votes,
            )

        made = [join(pair) for pair in two_answers(examples, layout)]
        kept = [one for one in made if one is not None]
        if not kept:
            raise DataError(_nothing_counts(where, max_length))
        encoded[kind] = _dataset(made, read_votes(examples, layout))
        cuts[kind] = sum(one.is_cut for one in kept)
        notes += cut_note(cuts[kind], len(examples), max_length, kind)
        if len(kept) < len(examples):
            notes.append(
                f"{len(examples) - len(kept)} of {len(examples)} {kind} examples were left out: "
                f"within {max_length} tokens no token of an answer counts, or both are the same."
            )
    return encoded, cuts["training"], layout, notes


def _dataset(made: Sequence[EncodedAnswers | None], votes: Sequence[int] | None) -> Dataset:
    """Return the examples with tokens that count."""
    kept = [number for number, one in enumerate(made) if one is not None]
    rows: list[Any] = [made[number] for number in kept]
    columns: dict[str, Any] = {
        "input_ids": [row.ids for row in rows],
        "labels": [row.labels for row in rows],
        PARTS: [row.parts for row in rows],
    }
    features = dict(FEATURES)
    if votes is not None:
        columns[VOTES_KEY] = [votes[number] for number in kept]
        features[VOTES_KEY] = Value("int64")
    return Dataset.from_dict(columns, features=Features(features))


def preview_answers(
    encoded: Encoded, tokenizer: PreTrainedTokenizerBase, n: int
) -> list[PreviewExample]:
    """Return the first examples, read back from the collated tensors."""
    collate = AnswerCollator(pad_id(tokenizer))
    previews = []
    for example in first_examples(encoded.train, n):
        batch = collate([example])
        rows = []
        for row in range(2):
            mask = batch["attention_mask"][0, row].bool()
            counted = (batch["labels"][0, row][mask] >= 0).tolist()
            counted[0] = False  # nothing predicts the first token
            rows.append((readable(tokenizer, batch["input_ids"][0, row][mask]), counted))
        (chosen, marks), (rejected, others) = rows
        prompt = example[PARTS][0]
        if VOTES_KEY in example:
            vote = "good" if example[VOTES_KEY] else "bad"
            note = f"{vote}, {sum(marks)} of {len(marks)} tokens count"
            previews.append(PreviewExample(chosen, marks, note))
            continue
        note = f"{prompt} of the prompt, {sum(marks)} and {sum(others)} that count"
        beside = PreviewExample(rejected[prompt:], others[prompt:], "rejected")
        previews.append(PreviewExample(chosen, marks, note, prompt, beside))
    return previews


def _nothing_counts(where: Place, max_length: int) -> str:
    return (
        f"Nothing can be learnt from {where}: within {max_length} tokens no token of an answer "
        "counts, or both answers are the same. Raise data.max_length, or shorten the prompts."
    )


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

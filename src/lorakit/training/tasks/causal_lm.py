"""CAUSAL_LM: plain text, prompts with completions, or conversations, with TRL's SFTTrainer."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from datasets import Dataset, Value
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from lorakit.config import NOT_COUNTED, TaskType
from lorakit.data import Place, hiding_progress_bars
from lorakit.data.chat import read_template
from lorakit.data.chunks import Batch
from lorakit.data.conversations import drop_filled_nulls
from lorakit.data.packing import asks_to_pack, require_position_ids
from lorakit.data.table_cache import TableCache
from lorakit.data.text_formats import CountedIds, Layout, find_layout
from lorakit.data.tokenize_examples import (
    IDS,
    map_examples,
    naming_examples,
    readable,
)
from lorakit.data.tokenizers import added_tokens, decode, pad_id, tokenizer_digest
from lorakit.errors import ConfigError, DataError, did_you_mean
from lorakit.models.pretrained import resolve_max_length
from lorakit.training.tasks.base import Encoded, Loaded, PreviewExample, Task
from lorakit.training.tasks.encode_splits import EncodedSplit, encode_splits
from lorakit.training.tasks.language_layouts import (
    check_examples,
    layout_encoder,
    layout_notes,
    uses_template,
)
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.language_trainer import LanguageTrainer

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import Recipe


_DATA_KEYS = {"text", "prompt", "completion", "messages", "turns", "system_prompt"}
"""Keys of the recipe's `data` that the ids of an example depend on."""
_ENDINGS_READ = 64
"""Number of examples that show how answers end."""


class CausalLMTrainer(AdapterTrainerMixin, LanguageTrainer):
    """Trains an adapter of a causal language model."""


class CausalLM(Task):
    """Predict the next token."""

    task_type: ClassVar[TaskType] = TaskType.CAUSAL_LM
    best_metric: ClassVar[str] = "eval_loss"
    greater_is_better: ClassVar[bool] = False
    base_trainer_class: ClassVar[type[Trainer]] = LanguageTrainer
    trainer_class: ClassVar[type[Trainer]] = CausalLMTrainer

    def arguments_class(self) -> type[TrainingArguments]:
        """Return TRL's SFTConfig."""
        return SFTConfig

    def default_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Disable bfloat16 and activation checkpointing, which SFTConfig enables by default."""
        return {"bf16": False, "activation_checkpointing": False}

    def load_tokenizer(self, recipe: Recipe, saved: Path | None = None) -> PreTrainedTokenizerBase:
        """Load the tokenizer, with the end token and chat template of the recipe.

        Raises:
            ConfigError: `training.eos_token` is not a token of the vocabulary.
        """
        tokenizer = super().load_tokenizer(recipe, saved)
        eos = recipe.training.get("eos_token")
        if eos is not None:
            vocabulary: dict[str, int] = tokenizer.get_vocab()
            if eos not in vocabulary:
                special = list(added_tokens(tokenizer))
                raise ConfigError(
                    f"No such token in training.eos_token: got '{eos}', expected one of the "
                    f"vocabulary of '{recipe.model}'.{did_you_mean(eos, special)} Its special "
                    f"tokens: {', '.join(special)}."
                )
            tokenizer.eos_token = eos
        template = recipe.training.get("chat_template_path")
        if template is not None:
            tokenizer.chat_template = read_template(template)
        return tokenizer

    def encode(self, splits: Splits, loaded: Loaded) -> Encoded:
        """Tokenize each example, mark the tokens that count in the loss, and pack if asked to."""
        recipe, tokenizer, model = loaded.recipe, loaded.tokenizer, loaded.model
        data, training = recipe.data, recipe.training
        max_length = resolve_max_length(data.max_length, model, tokenizer)
        where = splits.training_place(data)
        layout = find_layout(splits.train, data, where)
        encoder = layout_encoder(layout, recipe, tokenizer)
        packs = {"training": bool(training.get("packing")), "validation": _packs_validation(recipe)}
        strategy = training.get("packing_strategy", "bfd")
        require_position_ids(model, training)
        if packs["training"] and splits.mixture is not None:
            raise ConfigError(
                "Packed examples cannot be drawn by weights: got training.packing=true and sources "
                "with weights in data.train, expected one of them. Leave packing or the weights "
                "out."
            )

        def encode(examples: Dataset, kind: str, where: Place, cache: TableCache) -> EncodedSplit:
            # Other packing strategies split long examples, and lose no tokens.
            truncates = not packs[kind] or strategy == "bfd"
            longest = max_length if truncates else None
            identity = partial(_identity, layout, recipe, longest, tokenizer)
            split = _encode(examples, layout, encoder, longest, where, identity, cache)
            if not len(split.examples):
                raise DataError(_all_masked_message(where, split.cut, max_length, layout))
            why = f"none of their tokens counts within {max_length} tokens"
            split = split.noting_left_out(examples, kind, why)
            if packs[kind]:
                split = replace(split, examples=_pack(split.examples, max_length, strategy))
            return split

        def encode_part(examples: Dataset, where: Place, cache: TableCache) -> Dataset:
            return _encode(examples, layout, encoder, max_length, where, str, cache).examples

        notes = [
            *self.fresh_notes(loaded),
            *layout.notes,
            *layout_notes(splits.train, layout, tokenizer),
        ]
        if any(packs.values()) and not asks_to_pack(training):
            notes.append(f"Packed texts see each other: training.packing_strategy={strategy}.")
        encoded = encode_splits(splits, data, max_length, encode, notes, encode_part)
        settings = self.settings(
            loaded,
            max_length=max_length,
            format="messages" if uses_template(layout, tokenizer) else layout.name,
            stop_token_ids=stop_tokens(encoded.train, tokenizer),
            system_prompt=data.system_prompt,
        )
        return replace(encoded, settings=settings)

    def preview_example(self, example: dict[str, Any], loaded: Loaded) -> PreviewExample:
        """Return an example as the collator makes it; packed texts are one example."""
        tokenizer, packed = loaded.tokenizer, "seq_lengths" in example
        collate = DataCollatorForLanguageModeling(pad_id(tokenizer), padding_free=packed)
        batch = collate([example])
        counted: list[bool] = (batch["labels"][0] != NOT_COUNTED).tolist()
        counted[0] = False  # nothing predicts the first token
        note = f"{sum(counted)} of {len(counted)} tokens count"
        if packed:
            note += f", {len(example['seq_lengths'])} texts packed"
        return PreviewExample(readable(tokenizer, batch["input_ids"][0]), counted, note)

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return loss, perplexity and the accuracy of predicted tokens."""
        return ("loss", "perplexity", "mean_token_accuracy")

    def trainer_options(
        self, loaded: Loaded, encoded: Encoded, arguments: TrainingArguments
    ) -> dict[str, Any]:
        """Return no options: SFTTrainer has its collator, and LanguageTrainer its metrics."""
        return {}

    def build_trainer(
        self,
        loaded: Loaded,
        encoded: Encoded,
        arguments: TrainingArguments,
        callbacks: Sequence[TrainerCallback] = (),
        trainer_class: type[Trainer] | None = None,
    ) -> Trainer:
        """Build TRL's SFTTrainer on examples that are tokenized, truncated and packed already."""
        settings: Any = arguments
        settings.dataset_kwargs = {"skip_prepare_dataset": True}
        settings.max_length = None
        # The examples are no longer conversations: their labels say what counts.
        settings.assistant_only_loss = False
        settings.chat_template_path = None
        with warnings.catch_warnings():
            # Smoothing works; TRL only announces that its option moves in 2.0.
            warnings.filterwarnings("ignore", "`label_smoothing_factor` is deprecated")
            return super().build_trainer(loaded, encoded, arguments, callbacks, trainer_class)


def _identity(
    layout: Layout, recipe: Recipe, max_length: int | None, tokenizer: PreTrainedTokenizerBase
) -> str:
    """Return all that the ids of an example depend on besides it."""
    keys = ("assistant_only_loss", "completion_only_loss")
    return repr(
        (
            layout.name,
            layout.conversation,
            layout.data.model_dump(include=_DATA_KEYS),
            [recipe.training.get(key) for key in keys],
            max_length,
            tokenizer_digest(tokenizer),
        )
    )


def _packs_validation(recipe: Recipe) -> bool:
    packs = recipe.training.get("eval_packing")
    return bool(recipe.training.get("packing") if packs is None else packs)


def _encode(
    examples: Dataset,
    layout: Layout,
    encoder: Callable[[Batch], list[CountedIds]],
    max_length: int | None,
    where: Place,
    identity: Callable[[], str],
    cache: TableCache,
) -> EncodedSplit:
    """Check examples, and encode those in which a token counts into ids and labels.

    `identity` says all that the ids of an example depend on besides it.
    """
    features = dict(examples.features)  # a dataset copies them at each access

    def encode_columns(batch: Batch, numbers: Sequence[int]) -> list[CountedIds]:
        return encoder(drop_filled_nulls(batch, features))

    encode = naming_examples(encode_columns, where)

    def tokenize(batch: Batch, numbers: Sequence[int]) -> tuple[Batch, tuple[int]]:
        made: Batch = {"input_ids": [], "labels": [], "number": []}
        cut = 0
        for number, example in zip(numbers, encode(batch, numbers), strict=True):
            cut += max_length is not None and len(example.ids) > max_length
            ids, counted = example.ids[:max_length], example.counted[:max_length]
            if not any(counted[1:]):  # the first token is never predicted
                continue
            labels = [i if c else NOT_COUNTED for i, c in zip(ids, counted, strict=True)]
            for column, value in zip(made.values(), (ids, labels, number), strict=True):
                column.append(value)
        return made, (cut,)

    columns = {"input_ids": IDS, "labels": IDS, "number": Value("int64")}
    check = partial(check_examples, examples, layout, where)
    made, (cut,) = map_examples(examples, tokenize, columns, identity, cache, check)
    kept = made.data.column("number").to_numpy()
    return EncodedSplit(made.remove_columns("number"), cut, kept=kept)


def stop_tokens(examples: Dataset, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the special token that ends what counts, such as a template's end of turn.

    Special tokens are also inside answers, such as the end of a model's thoughts, and a long
    example is cut anywhere: the most frequent last token counts, before white space.
    """
    special = set(added_tokens(tokenizer).values())
    is_blank = cache(lambda token: not decode(tokenizer, [token]).strip())
    endings = Counter[int]()
    for labels in examples[:_ENDINGS_READ]["labels"]:
        last = NOT_COUNTED
        for label in [*labels, NOT_COUNTED]:
            if label == NOT_COUNTED:
                endings[last] += 1
                last = NOT_COUNTED
            elif label in special or not is_blank(label):
                last = label
    return tuple(token for token, _ in endings.most_common() if token in special)[:1]


def _pack(examples: Dataset, max_length: int, strategy: str) -> Dataset:
    without_cache = {
        "keep_in_memory": True,
        "load_from_cache_file": False,
        "new_fingerprint": uuid4().hex,
    }
    with hiding_progress_bars():
        return pack_dataset(examples, max_length, strategy, without_cache)


def _all_masked_message(where: Place, cut: int, max_length: int, layout: Layout) -> str:
    head = f"Nothing can be learnt from {where}: no token of any example counts in the loss."
    if cut:
        return (
            f"{head} {cut} examples are longer than {max_length} tokens, and the tokens that count "
            "come after the cut. Raise data.max_length, or shorten the text before them."
        )
    if layout.conversation:
        return (
            f"{head} The chat template marks nothing as the assistant's. Check the roles, or set "
            "training.assistant_only_loss=false."
        )
    return f"{head} The texts are too short. Check data.{layout.name} and the columns it names."

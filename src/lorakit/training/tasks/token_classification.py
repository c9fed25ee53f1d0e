"""TOKEN_CLS: one tag for each word (named entities, parts of speech), on transformers' Trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from datasets import ClassLabel, Dataset
from transformers import (
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lorakit.analysis.metrics import (
    classification_metric_names,
    first_output,
    is_entity_scheme,
    token_metrics,
)
from lorakit.config import TaskType
from lorakit.data import Place, is_missing, listed, require_columns, unused_note
from lorakit.data.labels import in_order, label_notes, named, require_distinct, require_seen
from lorakit.data.tokenize_examples import (
    IDS,
    NOT_COUNTED,
    cut_note,
    first_examples,
    map_examples,
    readable,
)
from lorakit.data.tokenizers import word_columns
from lorakit.errors import ConfigError, DataError
from lorakit.libraries.extras import require_package
from lorakit.models.new_tokens import with_new_tokens
from lorakit.models.pretrained import load_tokenizer, resolve_max_length
from lorakit.training.losses.counted_loss import CountedLossTrainer
from lorakit.training.tasks.base import Encoded, PreviewExample, Task, loading_options

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import DataConfig, Recipe


class TokenClassification(Task):
    """Give each word of a text its tag."""

    task_type: ClassVar[TaskType] = TaskType.TOKEN_CLS
    best_metric: ClassVar[str] = "eval_f1"
    greater_is_better: ClassVar[bool] = True

    def arguments_class(self) -> type[TrainingArguments]:
        """Return transformers' TrainingArguments."""
        return TrainingArguments

    def load_tokenizer(self, recipe: Recipe) -> PreTrainedTokenizerBase:
        """Load a tokenizer that can say which word a token came from.

        Raises:
            ConfigError: It has no fast version, which alone keeps track of words.
        """
        options = loading_options(recipe)
        # Byte-level tokenizers see a word without its space as the middle of a word.
        tokenizer = load_tokenizer(recipe.model, add_prefix_space=True, **options)
        if not tokenizer.is_fast:
            raise ConfigError(
                f"The tokenizer of '{recipe.model}' in model cannot tag words: got the slow "
                f"{type(tokenizer).__name__}, expected a fast one, which knows the word of each "
                "token. Choose a model with a tokenizer.json."
            )
        return with_new_tokens(tokenizer, recipe)

    def columns(self, recipe: Recipe) -> dict[str, str]:
        """Return the columns of texts and labels."""
        return _columns(recipe.data)

    def label_column(self, recipe: Recipe) -> str:
        """Return the column of the tags."""
        return recipe.data.tags

    def labels(self, splits: Splits, recipe: Recipe) -> tuple[str, ...]:
        """Return the tag names: a ClassLabel feature's own, else those found, "O" first."""
        data = recipe.data
        where = splits.training_place(data)
        names = _tag_feature_names(splits.train, data)
        if names is not None:
            return tuple(names)
        found = {tag for tags in _tag_rows(splits.train, data, where) for tag in tags}
        ordered = in_order(found)
        return ("O", *(tag for tag in ordered if tag != "O")) if "O" in found else ordered

    def encode(
        self,
        splits: Splits,
        recipe: Recipe,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        labels: tuple[str, ...] | None,
    ) -> Encoded:
        """Tokenize the words; the tag counts on the first token of each word."""
        data = recipe.data
        max_length = resolve_max_length(data.max_length, model, tokenizer)
        parts = splits.parts(data)
        tags: dict[str, list[list[str]]] = {}
        for rows, kind, where in parts:
            require_columns(rows, _columns(data), where)
            tags[kind] = _tag_rows(rows, data, where)
        seen = {tag for row in tags["training"] for tag in row}
        encoded: dict[str, Dataset] = {}
        notes = self.fresh_notes(recipe, model)
        notes += label_notes(labels or (), data.tags)
        notes += unused_note(splits.train, _columns(data).values())
        for rows, kind, where in parts:
            require_seen(seen, tags[kind], data.tags, where)
            made, cut = _encode(rows, tags[kind], data, tokenizer, labels or (), max_length)
            _require_counted(made, where, max_length)
            encoded[kind] = made
            notes += cut_note(cut, len(rows), max_length, kind)
        settings = self.settings(recipe, model, max_length=max_length)
        return Encoded(encoded["training"], encoded.get("validation"), tuple(notes), settings)

    def preview_examples(
        self,
        encoded: Encoded,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, ...] | None,
        n: int = 2,
    ) -> list[PreviewExample]:
        """Return the first rows as the collator batches them; the first token of a word counts."""
        batch = DataCollatorForTokenClassification(tokenizer)(first_examples(encoded.train, n))
        rows = []
        for ids, mask, targets in zip(
            batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True
        ):
            tokens = readable(tokenizer, ids[mask])
            kept = [int(target) for target in targets[mask]]
            counted = [target != NOT_COUNTED for target in kept]
            tagged = [
                f"{token.strip()} {labels[target] if labels else target}"
                for token, target in zip(tokens, kept, strict=True)
                if target != NOT_COUNTED
            ]
            rows.append(PreviewExample(tokens, counted, f"tags: {', '.join(tagged)}"))
        return rows

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return loss, accuracy, precision, recall and F1; of other tags each F1.

        Raises:
            ConfigError: The package that scores entities is not installed.
        """
        names = labels or ()
        if is_entity_scheme(names):
            require_package("seqeval", "task TOKEN_CLS with tags of entities (B-..., I-...)")
            return ("loss", "accuracy", "precision", "recall", "f1")
        known = classification_metric_names(names)
        return ("loss", *(name for name in known if name != "roc_auc"))

    def build_trainer(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        encoded: Encoded,
        arguments: TrainingArguments,
        labels: tuple[str, ...] | None,
        callbacks: Sequence[TrainerCallback],
        mixin: type,
    ) -> Trainer:
        """Build transformers' Trainer with padded tags and the entity metrics."""
        names = tuple(labels or ())

        def metrics(prediction: EvalPrediction) -> dict[str, float]:
            return token_metrics(prediction.label_ids, prediction.predictions, names)

        trainer_class: Any = type("TaggingTrainer", (mixin, CountedLossTrainer), {})
        return trainer_class(
            model=model,
            args=arguments,
            train_dataset=encoded.train,
            eval_dataset=encoded.validation,
            processing_class=tokenizer,
            data_collator=DataCollatorForTokenClassification(tokenizer),
            compute_metrics=metrics,
            preprocess_logits_for_metrics=first_output,
            callbacks=list(callbacks),
        )


def _columns(data: DataConfig) -> dict[str, str]:
    return {"data.tokens": data.tokens, "data.tags": data.tags}


def _tag_feature_names(rows: Dataset, data: DataConfig) -> list[str] | None:
    inner = getattr(rows.features[data.tags], "feature", None)
    return inner.names if isinstance(inner, ClassLabel) else None


def _tag_rows(rows: Dataset, data: DataConfig, where: Place) -> list[list[str]]:
    """Return the tag names of each row, after checking that words and tags fit together.

    Raises:
        DataError: Lists the rows that hold no lists, lists of different lengths, or no words.
    """
    names = _tag_feature_names(rows, data)
    all_words: list[Any] = rows[data.tokens][:]
    all_tags: list[Any] = rows[data.tags][:]
    wrong: dict[str, list[int]] = {}
    for row, (words, tags) in enumerate(zip(all_words, all_tags, strict=True)):
        problem = _row_problem(words, tags, names)
        if problem:
            wrong.setdefault(problem, []).append(row)
    if wrong:
        problems = "; ".join(f"{listed(at, where)}: {said}" for said, at in wrong.items())
        raise DataError(
            f"Words and tags do not fit together in {where}, columns '{data.tokens}' and "
            f"'{data.tags}': {problems}; expected a list of words and as many tags in each "
            "example. Repair or remove these examples."
        )
    if names is None:
        require_distinct(all_tags, data.tags, where)
        return [[str(tag) for tag in tags] for tags in all_tags]
    return [[names[tag] for tag in tags] for tags in all_tags]


def _row_problem(words: Any, tags: Any, names: Sequence[str] | None) -> str | None:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return "the words are no list of texts"
    if not isinstance(tags, list) or not all(_is_tag(tag, names) for tag in tags):
        return "the tags are no list of texts or integers"
    if not words:
        return "no words"
    if len(words) != len(tags):
        return f"{len(words)} words but {len(tags)} tags"
    return None


def _is_tag(tag: Any, names: Sequence[str] | None) -> bool:
    if names is not None:
        return named(names, tag) is not None
    return isinstance(tag, (str, int)) and not is_missing(tag) and tag != -1


def _encode(
    rows: Dataset,
    tags: Sequence[Sequence[str]],
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    max_length: int,
) -> tuple[Dataset, int]:
    """Tokenize the words and put each word's tag on its first token.

    Returns: The rows, and how many lost words to the cut.
    """
    ids = {label: index for index, label in enumerate(labels)}
    numbered = Dataset.from_dict(
        {"words": rows[data.tokens][:], "tags": [[ids[tag] for tag in row] for row in tags]}
    )
    cut_rows: list[int] = []

    def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        made, word_of = word_columns(tokenizer, batch["words"], max_length)
        all_targets = []
        for row, row_tags in enumerate(batch["tags"]):
            words = word_of[row]
            before = [None, *words[:-1]]
            all_targets.append(
                [
                    NOT_COUNTED if word is None or word == previous else row_tags[word]
                    for word, previous in zip(words, before, strict=True)
                ]
            )
            last = max((word for word in words if word is not None), default=-1)
            is_full = len(words) >= max_length - 2
            cut_rows.append(int(is_full and last + 1 < len(row_tags)))
        return {**made, "labels": all_targets}

    features = {column: IDS for column in tokenizer("a")} | {"labels": IDS}
    return map_examples(numbered, tokenize, features), sum(cut_rows)


def _require_counted(made: Dataset, where: Place, max_length: int) -> None:
    rows: list[list[int]] = made["labels"][:]
    if all(label == NOT_COUNTED for row in rows for label in row):
        raise DataError(
            f"Nothing can be learnt from {where}: no word of {len(rows)} examples has a token "
            f"within {max_length} tokens (data.max_length), so no tag counts in the loss. Raise "
            "data.max_length, or check the words."
        )

"""TOKEN_CLS: one tag per word (named entities, parts of speech), with transformers' Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from datasets import ClassLabel, Dataset
from tokenizers import normalizers, pre_tokenizers
from transformers import (
    DataCollatorForTokenClassification,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
)

from lorakit.analysis.baselines import Guess, guess_tag
from lorakit.analysis.metric_text import classification_metric_names, is_entity_scheme
from lorakit.analysis.metrics import first_output, token_metrics
from lorakit.config import NOT_COUNTED, TaskType
from lorakit.data import Place, describe_examples, is_missing, require_columns, unused_note
from lorakit.data.chunks import Batch
from lorakit.data.labels import class_name, label_notes, require_distinct, require_seen, sort_labels
from lorakit.data.table_cache import TableCache
from lorakit.data.tokenize_examples import (
    IDS,
    map_examples,
    readable,
)
from lorakit.data.tokenizers import tokenizer_digest, word_columns
from lorakit.errors import ConfigError, DataError
from lorakit.libraries.extras import require_package
from lorakit.models.pretrained import resolve_max_length
from lorakit.training.predicted import (
    Evaluated,
    Predicted,
    predict_tags,
    prediction_table,
)
from lorakit.training.tasks.base import (
    Encoded,
    Loaded,
    PreviewExample,
    Task,
    learnt_labels,
    load_run_tokenizer,
)
from lorakit.training.tasks.encode_splits import EncodedSplit, encode_splits
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.step_trainer import ClassifierTrainer

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import DataConfig, Recipe


class TokenClassificationTrainer(AdapterTrainerMixin, ClassifierTrainer):
    """Trains an adapter of a word tagger."""


class TokenClassification(Task):
    """Tag the words of texts."""

    task_type: ClassVar[TaskType] = TaskType.TOKEN_CLS
    best_metric: ClassVar[str] = "eval_f1"
    greater_is_better: ClassVar[bool] = True
    base_trainer_class: ClassVar[type[Trainer]] = ClassifierTrainer
    trainer_class: ClassVar[type[Trainer]] = TokenClassificationTrainer

    def load_tokenizer(self, recipe: Recipe, saved: Path | None = None) -> PreTrainedTokenizerBase:
        """Load a fast tokenizer, which maps tokens to words.

        Raises:
            ConfigError: The tokenizer has no fast version.
        """
        # Byte-level tokenizers encode a word without a leading space as the middle of a word.
        tokenizer = load_run_tokenizer(recipe, saved, add_prefix_space=True)
        if not tokenizer.is_fast:
            raise ConfigError(
                f"The tokenizer of '{recipe.model}' in model cannot tag words: got the slow "
                f"{type(tokenizer).__name__}, expected a fast one, which knows the word of each "
                "token. Choose a model with a tokenizer.json."
            )
        if saved is None:
            _begin_words_with_space_(tokenizer)
        return tokenizer

    def columns(self, recipe: Recipe) -> dict[str, str]:
        """Return the columns of texts and labels."""
        return {"data.tokens": recipe.data.tokens, "data.tags": recipe.data.tags}

    def label_column(self, recipe: Recipe) -> str:
        """Return the column of the tags."""
        return recipe.data.tags

    def labels(self, splits: Splits, recipe: Recipe) -> tuple[str, ...]:
        """Return the tag names: those of a ClassLabel feature, else those found, "O" first."""
        data = recipe.data
        where = splits.labelled_place(data)
        names = _tag_feature_names(splits.labelled, data)
        if names is not None:
            return tuple(names)
        found = {tag for tags in _read_tags(splits.labelled, data, where) for tag in tags}
        ordered = sort_labels(found)
        return ("O", *(tag for tag in ordered if tag != "O")) if "O" in found else ordered

    def encode(self, splits: Splits, loaded: Loaded) -> Encoded:
        """Tokenize the words; the tag counts on the first token of each word."""
        data, tokenizer, labels = loaded.recipe.data, loaded.tokenizer, loaded.labels or ()
        max_length = resolve_max_length(data.max_length, loaded.model, tokenizer)
        columns = self.columns(loaded.recipe)
        tags: dict[str, list[list[str]]] = {}
        for examples, kind, where in splits.with_places(data):
            require_columns(examples, columns, where)
            tags[kind] = _read_tags(examples, data, where)
        tagged = (tag for example_tags in tags["training"] for tag in example_tags)
        seen = {*tagged, *learnt_labels(loaded, splits)}

        def encode(examples: Dataset, kind: str, where: Place, cache: TableCache) -> EncodedSplit:
            require_seen(seen, tags[kind], data.tags, where)
            split = _encode(examples, tags[kind], data, tokenizer, labels, max_length, cache)
            _require_counted(split.examples, where, max_length)
            return split

        notes = [
            *self.fresh_notes(loaded),
            *label_notes(labels, data.tags),
            *unused_note(splits.train, columns.values()),
        ]
        settings = self.settings(loaded, max_length=max_length)
        return replace(encode_splits(splits, data, max_length, encode, notes), settings=settings)

    def preview_example(self, example: dict[str, Any], loaded: Loaded) -> PreviewExample:
        """Return an example as the collator makes it; first tokens of words count."""
        labels = loaded.labels
        batch = DataCollatorForTokenClassification(loaded.tokenizer)([example])
        tokens = readable(loaded.tokenizer, batch["input_ids"][0])
        targets: list[int] = batch["labels"][0].tolist()
        tagged = [
            f"{token.strip()} {labels[target] if labels else target}"
            for token, target in zip(tokens, targets, strict=True)
            if target != NOT_COUNTED
        ]
        counted = [target != NOT_COUNTED for target in targets]
        return PreviewExample(tokens, counted, f"tags: {', '.join(tagged)}")

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return loss, accuracy, precision, recall and F1; for non-entity tags also each F1.

        Raises:
            ConfigError: The package that scores entities is not installed.
        """
        names = labels or ()
        if is_entity_scheme(names):
            require_package("seqeval", "task TOKEN_CLS with tags of entities (B-..., I-...)")
            return ("loss", "accuracy", "precision", "recall", "f1")
        known = classification_metric_names(names)
        return ("loss", *(name for name in known if name != "roc_auc"))

    def trainer_options(
        self, loaded: Loaded, encoded: Encoded, arguments: TrainingArguments
    ) -> dict[str, Any]:
        """Return a collator that pads tokens and tags, and the tagging metrics."""
        names = loaded.labels or ()

        def metrics(prediction: EvalPrediction) -> dict[str, float]:
            return token_metrics(prediction.label_ids, prediction.predictions, names)

        return {
            "data_collator": DataCollatorForTokenClassification(loaded.tokenizer),
            "compute_metrics": metrics,
            "preprocess_logits_for_metrics": first_output,
        }

    def prediction_reader(self, loaded: Loaded) -> Callable[[Evaluated], Predicted]:
        """Return what reads tags and their probabilities."""
        return lambda found: predict_tags(found, loaded.labels or ())

    def blind_guess(self, known: Any, examples: Any, labels: Sequence[str]) -> Guess:
        """Return the commonest tag."""
        return guess_tag(known["labels"], examples["labels"][:], labels)

    def prediction_columns(
        self, predicted: Predicted, examples: Dataset, loaded: Loaded, encoded: Encoded
    ) -> dict[str, list[Any]]:
        """Return words, tags, predicted tags, their probabilities and their words."""
        data = loaded.recipe.data
        words: list[list[str]] = examples[data.tokens][:]
        answers = _read_tags(examples, data, Place("the validation examples"))
        counts = [len(tags) for tags in predicted.columns["prediction"]]
        most = encoded.settings["max_length"]
        tagged = [
            given if len(given) == count else _words_with_tokens(loaded.tokenizer, given, most)
            for given, count in zip(words, counts, strict=True)
        ]
        new = {**predicted.columns, "predicted_words": tagged}
        return prediction_table({data.tokens: words}, data.tags, answers, new)


def _begin_words_with_space_(tokenizer: Any) -> None:
    """Put a space before words where the tokenizer's class ignores the option, as the general one.

    ModernBERT, Llama 3 and others have the general class.
    """
    core = tokenizer.backend_tokenizer
    is_sequence = isinstance(core.pre_tokenizer, pre_tokenizers.Sequence)
    steps: Any = core.pre_tokenizer if is_sequence else [core.pre_tokenizer]
    if any(isinstance(one, pre_tokenizers.ByteLevel) and not one.add_prefix_space for one in steps):
        before = [] if core.normalizer is None else [core.normalizer]
        core.normalizer = normalizers.Sequence([*before, normalizers.Prepend(" ")])


def _tag_feature_names(examples: Dataset, data: DataConfig) -> list[str] | None:
    inner = getattr(examples.features[data.tags], "feature", None)
    return inner.names if isinstance(inner, ClassLabel) else None


def _read_tags(examples: Dataset, data: DataConfig, where: Place) -> list[list[str]]:
    """Return the tag names of each example, after checking that words and tags fit together.

    Raises:
        DataError: Lists the examples without lists, with lists of different lengths, or no words.
    """
    names = _tag_feature_names(examples, data)
    all_words: list[Any] = examples[data.tokens][:]
    all_tags: list[Any] = examples[data.tags][:]
    wrong: dict[str, list[int]] = {}
    for number, (words, tags) in enumerate(zip(all_words, all_tags, strict=True)):
        problem = _example_problem(words, tags, names)
        if problem:
            wrong.setdefault(problem, []).append(number)
    if wrong:
        problems = "; ".join(
            f"{describe_examples(at, where)}: {said}" for said, at in wrong.items()
        )
        raise DataError(
            f"Words and tags do not fit together in {where}, columns '{data.tokens}' and "
            f"'{data.tags}': {problems}; expected a list of words and as many tags in each "
            "example. Repair or remove these examples."
        )
    if names is None:
        require_distinct(all_tags, data.tags, where)
        return [[str(tag) for tag in tags] for tags in all_tags]
    return [[names[tag] for tag in tags] for tags in all_tags]


def _example_problem(words: Any, tags: Any, names: Sequence[str] | None) -> str | None:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return "the words are not a list of texts"
    if not isinstance(tags, list) or not all(_is_tag(tag, names) for tag in tags):
        return "the tags are not a list of texts or integers"
    if not words:
        return "no words"
    if len(words) != len(tags):
        return f"{len(words)} words but {len(tags)} tags"
    return None


def _is_tag(tag: Any, names: Sequence[str] | None) -> bool:
    if names is not None:
        return class_name(names, tag) is not None
    return isinstance(tag, (str, int)) and not is_missing(tag) and tag != -1


def _encode(
    examples: Dataset,
    tags: Sequence[Sequence[str]],
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    labels: Sequence[str],
    max_length: int,
    cache: TableCache,
) -> EncodedSplit:
    """Tokenize the words and put each word's tag on its first token."""
    ids = {label: index for index, label in enumerate(labels)}

    def tokenize(batch: Batch, numbers: Sequence[int]) -> tuple[Batch, tuple[int]]:
        made, word_of = word_columns(tokenizer, batch[data.tokens], max_length)
        all_targets, cut = [], 0
        for words, number in zip(word_of, numbers, strict=True):
            before = [None, *words[:-1]]
            word_tags = tags[number]
            all_targets.append(
                [
                    NOT_COUNTED if word is None or word == previous else ids[word_tags[word]]
                    for word, previous in zip(words, before, strict=True)
                ]
            )
            last = max((word for word in words if word is not None), default=-1)
            is_full = len(words) >= max_length - 2
            cut += int(is_full and last + 1 < len(word_tags))
        return {**made, "labels": all_targets}, (cut,)

    features = {column: IDS for column in tokenizer("a")} | {"labels": IDS}

    def identity() -> str:
        return repr((data.tokens, data.tags, max_length, labels, tokenizer_digest(tokenizer)))

    words = examples.select_columns([data.tokens, data.tags])
    made, (cut,) = map_examples(words, tokenize, features, identity, cache)
    return EncodedSplit(made, cut)


def _words_with_tokens(
    tokenizer: PreTrainedTokenizerBase, words: Sequence[str], max_length: int
) -> list[str]:
    """Return the words that have a token; others were cut off, or have no character it knows."""
    _, word_of = word_columns(tokenizer, [words], max_length)
    return [words[at] for at in sorted({at for at in word_of[0] if at is not None})]


def _require_counted(made: Dataset, where: Place, max_length: int) -> None:
    all_labels: list[list[int]] = made["labels"][:]
    if all(label == NOT_COUNTED for labels in all_labels for label in labels):
        raise DataError(
            f"Nothing can be learnt from {where}: no word of {len(all_labels)} examples has a "
            f"token within {max_length} tokens (data.max_length), so no tag counts in the loss. "
            "Raise data.max_length, or check the words."
        )

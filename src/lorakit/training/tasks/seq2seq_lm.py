"""SEQ_2_SEQ_LM: from a source text to a target text, with transformers' Seq2SeqTrainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedTokenizerBase,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

from lorakit.analysis.example_scores import scores_of_texts
from lorakit.analysis.metrics import ROUGE_NAMES, rouge_metrics
from lorakit.config import NOT_COUNTED, TaskType
from lorakit.data import Place, require_columns, unused_note
from lorakit.data.chunks import Batch
from lorakit.data.table_cache import TableCache
from lorakit.data.tokenize_examples import (
    IDS,
    map_examples,
    readable,
    require_texts,
    tokenize_texts,
)
from lorakit.data.tokenizers import (
    batch_columns,
    decode,
    end_id,
    pad_id,
    tokenizer_digest,
    with_ends,
)
from lorakit.errors import ConfigError
from lorakit.libraries.extras import require_package
from lorakit.models.pretrained import model_limit, resolve_max_length
from lorakit.training.predicted import MOST_EXAMPLES, Evaluated, Predicted
from lorakit.training.tasks.base import Encoded, Loaded, PreviewExample, Task
from lorakit.training.tasks.encode_splits import EncodedSplit, encode_splits
from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin
from lorakit.training.trainers.sequence_trainer import SequenceTrainer

if TYPE_CHECKING:
    from lorakit.data import Splits
    from lorakit.recipes.recipe import DataConfig, Recipe


class Seq2SeqLMTrainer(AdapterTrainerMixin, SequenceTrainer):
    """Trains an adapter of a sequence-to-sequence model."""


class Seq2SeqLM(Task):
    """Write a target text for a source text: summaries, translations, answers."""

    task_type: ClassVar[TaskType] = TaskType.SEQ_2_SEQ_LM
    best_metric: ClassVar[str] = "eval_loss"
    greater_is_better: ClassVar[bool] = False
    base_trainer_class: ClassVar[type[Trainer]] = SequenceTrainer
    trainer_class: ClassVar[type[Trainer]] = Seq2SeqLMTrainer

    def arguments_class(self) -> type[TrainingArguments]:
        """Return transformers' Seq2SeqTrainingArguments."""
        return Seq2SeqTrainingArguments

    def default_arguments(self, recipe: Recipe) -> dict[str, Any]:
        """Generate at evaluation, up to the maximum target length and the start token."""
        return {
            "predict_with_generate": True,
            "generation_max_length": recipe.data.max_target_length + 1,
        }

    def columns(self, recipe: Recipe) -> dict[str, str]:
        """Return the columns of sources and targets."""
        return {"data.source": recipe.data.source, "data.target": recipe.data.target}

    def encode(self, splits: Splits, loaded: Loaded) -> Encoded:
        """Tokenize sources and targets; a target ends with the end-of-text token."""
        recipe, tokenizer, model = loaded.recipe, loaded.tokenizer, loaded.model
        data = recipe.data
        max_length = resolve_max_length(data.max_length, model, tokenizer)
        limit = model_limit(model)
        if limit is not None and data.max_target_length > limit:
            raise ConfigError(
                "Targets would be too long in data.max_target_length: got "
                f"{data.max_target_length} tokens, expected at most {limit}, the positions of this "
                f"{type(model).__name__}. Set data.max_target_length={limit}."
            )
        columns = self.columns(recipe)

        def encode(examples: Dataset, kind: str, where: Place, cache: TableCache) -> EncodedSplit:
            require_columns(examples, columns, where)
            check = partial(require_texts, examples, columns, where)
            made, cut, cut_targets = _encode(examples, data, tokenizer, max_length, cache, check)
            note = (
                f"{cut_targets} of {len(examples)} {kind} targets were cut to "
                f"{data.max_target_length} tokens (data.max_target_length)."
            )
            return EncodedSplit(made, cut, [note] if cut_targets else [])

        notes = [*self.fresh_notes(loaded), *unused_note(splits.train, columns.values())]
        settings = self.settings(
            loaded,
            max_length=max_length,
            max_target_length=data.max_target_length,
            num_beams=recipe.training.get("generation_num_beams"),
            source_prefix=data.source_prefix,
        )
        return replace(encode_splits(splits, data, max_length, encode, notes), settings=settings)

    def preview_example(self, example: dict[str, Any], loaded: Loaded) -> PreviewExample:
        """Return an example as the collator makes it: source, then target tokens."""
        batch = DataCollatorForSeq2Seq(loaded.tokenizer)([example])
        source = readable(loaded.tokenizer, batch["input_ids"][0])
        target = readable(loaded.tokenizer, batch["labels"][0])
        counted = [False] * len(source) + [True] * len(target)
        note = f"source: {len(source)} tokens, target: {len(target)} tokens, all counted"
        return PreviewExample(source + target, counted, note)

    def metric_names(
        self, labels: tuple[str, ...] | None, training: Mapping[str, Any]
    ) -> tuple[str, ...]:
        """Return loss, and ROUGE if texts are generated.

        Raises:
            ConfigError: The package that computes ROUGE is not installed.
        """
        if not training.get("predict_with_generate"):
            return ("loss",)
        require_package("rouge_score", "training.predict_with_generate")
        return ("loss", *ROUGE_NAMES)

    def trainer_options(
        self, loaded: Loaded, encoded: Encoded, arguments: TrainingArguments
    ) -> dict[str, Any]:
        """Return the collator, and ROUGE if texts are generated."""
        generates = getattr(arguments, "predict_with_generate", False)
        return {
            # The model makes the decoder inputs that label smoothing needs.
            "data_collator": DataCollatorForSeq2Seq(loaded.tokenizer, model=loaded.model),
            "compute_metrics": _rouge(loaded.tokenizer) if generates else None,
        }

    def prediction_reader(self, loaded: Loaded) -> Callable[[Evaluated], Predicted]:
        """Return what reads generated texts."""
        tokenizer = loaded.tokenizer

        def read(found: Evaluated) -> Predicted:
            targets = _texts(tokenizer, found.label_ids[found.rows])
            texts = _texts(tokenizer, found.scores[found.rows])
            return Predicted(
                found.numbers,
                {"prediction": texts[:MOST_EXAMPLES]},
                len(texts),
                scores=(scores_of_texts(targets, texts),),
            )

        return read


def _encode(
    examples: Dataset,
    data: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache: TableCache,
    check: Callable[[], None],
) -> tuple[Dataset, int, int]:
    """Tokenize sources and targets; also returns how many of each were truncated."""

    def tokenize(batch: Batch, numbers: Sequence[int]) -> tuple[Batch, tuple[int, int]]:
        sources = [data.source_prefix + text for text in batch[data.source]]
        columns, cut = tokenize_texts(tokenizer, sources, None, max_length)
        whole, after = _target_ids(tokenizer, batch[data.target])
        cut_targets = sum(len(ids) + len(after) > data.max_target_length for ids in whole)
        labels = [[*ids[: data.max_target_length - len(after)], *after] for ids in whole]
        return columns | {"labels": labels}, (cut, cut_targets)

    features = {column: IDS for column in tokenizer("a")} | {"labels": IDS}
    names = [data.source, data.target]
    rules = (names, data.source_prefix, max_length, data.max_target_length)

    def identity() -> str:
        return repr((rules, tokenizer_digest(tokenizer)))

    texts = examples.select_columns(list(dict.fromkeys(names)))
    made, (cut, cut_targets) = map_examples(texts, tokenize, features, identity, cache, check)
    return made, cut, cut_targets


def _target_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[list[list[int]], list[int]]:
    """Return the ids of targets up to the end-of-text token, and those that the tokenizer adds.

    mBART's adds the language, which the decoder begins with.
    """
    empty, *targets = batch_columns(tokenizer, text_target=["", *texts], verbose=False)["input_ids"]
    end = end_id(tokenizer)
    after = empty[empty.index(end) + 1 :] if end in empty else []
    return with_ends(tokenizer, [ids[: len(ids) - len(after)] for ids in targets]), after


def _rouge(tokenizer: PreTrainedTokenizerBase) -> Callable[[EvalPrediction], dict[str, float]]:
    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        generated = _texts(tokenizer, prediction.predictions)
        return rouge_metrics(_texts(tokenizer, prediction.label_ids), generated)

    return metrics


def _texts(tokenizer: PreTrainedTokenizerBase, ids: Any) -> list[str]:
    padded = np.where(ids == NOT_COUNTED, pad_id(tokenizer), ids)
    return [decode(tokenizer, text, skip_special_tokens=True) for text in padded.tolist()]

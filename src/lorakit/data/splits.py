"""The splits of a run: named in the recipe, part of the dataset, or held out from training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset, DatasetDict

from lorakit.data.mixture import Mixture
from lorakit.data.overlap import overlap_note
from lorakit.data.reading.columns import hiding_progress_bars, require_columns
from lorakit.data.reading.files import no_examples
from lorakit.data.reading.positions import Place
from lorakit.data.reading.sources import (
    FileExamples,
    pick_split,
    read_source,
    read_sources,
    require_hub_data,
)
from lorakit.data.stratified import hold_out, keep_labels, read_labels
from lorakit.data.stream import SET_ASIDE, ExampleStream
from lorakit.data.table_cache import TableCache
from lorakit.data.targets import split_texts
from lorakit.errors import ConfigError, DataError, first_few
from lorakit.recipes.data_names import TEXT_TABLES

if TYPE_CHECKING:
    from lorakit.recipes.recipe import DataConfig


_STAND_INS = 32
_SAMPLE = 1000
"""Number of streamed examples that are read before the first step, to see what they are."""


@dataclass(frozen=True)
class Splits:
    """The examples of a run, before tokenization."""

    train: Dataset
    validation: Dataset | None
    notes: tuple[str, ...] = ()
    """Notes on what was done to the data, one sentence each, such as examples held out."""
    train_place: Place | None = None
    """Positions of the training examples in their source; None numbers them consecutively."""
    validation_place: Place | None = None
    mixture: Mixture | None = None
    """How often an epoch has each training example; None is once."""
    only_validation: bool = False
    """Whether the training examples were not read; `train` is then a few validation examples."""
    stream: ExampleStream | None = None
    """The training examples that are read when they are needed; `train` has the first of them."""

    @property
    def labelled(self) -> Dataset:
        """The examples whose labels the task has, or is compared with."""
        return (
            self.train if not self.only_validation or self.validation is None else self.validation
        )

    def with_places(self, data: DataConfig) -> list[tuple[Dataset, str, Place]]:
        """Return each split: its examples, "training" or "validation", and its place."""
        splits = [(self.train, "training", self.training_place(data))]
        if self.validation is not None:
            place = self.validation_place or _place("validation", data)
            splits.append((self.validation, "validation", place))
        return splits

    def training_only(self, chosen: Sequence[int] | np.ndarray) -> Splits:
        """Return a selection of the training examples, without validation examples."""
        place = None if self.train_place is None else self.train_place.select(chosen)
        mixture = None if self.mixture is None else self.mixture.select(chosen)
        return Splits(self.train.select(chosen), None, train_place=place, mixture=mixture)

    def labelled_place(self, data: DataConfig) -> Place:
        """Return the place of the labelled examples."""
        return self.with_places(data)[-1 if self.only_validation else 0][2]

    def training_place(self, data: DataConfig) -> Place:
        """Return the place of the training examples."""
        return self.train_place or _place("training", data)


@dataclass(frozen=True)
class _Split:
    examples: Dataset
    place: Place
    mixture: Mixture | None = None

    def select(self, chosen: Sequence[int] | np.ndarray) -> _Split:
        mixture = None if self.mixture is None else self.mixture.select(chosen)
        return _Split(self.examples.select(chosen), self.place.select(chosen), mixture)


def load_splits(
    data: DataConfig,
    seed: int,
    label: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Splits:
    """Read the training and validation examples that a recipe names.

    If the recipe names no validation data, a split called "validation" is used; without one,
    `data.validation_fraction` of the training examples is held out, the same ones for a seed.

    Args:
        data: The recipe's `data:` section.
        seed: Seed for choosing the examples that are held out or kept under a limit.
        label: The column of the task's labels, or of its lists of tags. Held-out examples are
            stratified by it, and training keeps an example of every label.
        columns: Required columns, by the recipe key that names each; they are checked before
            anything is held out.

    Raises:
        MissingFileError: A file, directory or hub dataset does not exist or cannot be reached.
        DataError: A file cannot be read, a column or split is missing, a split is empty, or no
            example can be held out.
        ConfigError: `data.delimiter` is set and no csv file is named.
    """
    _check_delimiter(data)
    if data.streaming:
        return _stream_splits(data, seed, columns or {})
    notes: list[str] = []
    cache = TableCache.of(data)
    with hiding_progress_bars():
        source, mixture = _read_training(data, cache)
        found = pick_split(
            *(source, data.train_split, data.train_name, "data.train_split"),
            is_given=isinstance(data.train, str) and data.train_split != "train",
        )
        named = _find_validation(data, source, cache)
    notes += cache.notes
    notes += found.notes
    where = f"'{data.train_name}' (data.train)"
    train = replace(_split(found, "training", data, where), mixture=mixture)
    require_columns(train.examples, columns or {}, train.place)
    validation = None
    if named is not None:
        notes += named.notes
        where = f"'{data.validation or data.train_name}' (validation split)"
        validation = _split(named, "validation", data, where)
    elif data.validation_fraction > 0:
        train, validation, note = _hold_out(train, data, seed, label, where)
        notes.append(note)
    if validation is not None:
        used = (columns or _language_columns(data)).values()
        both = (train.examples, validation.examples)
        notes += overlap_note(*both, used, is_held_out=named is None)
    train = _limit(train, data.max_train_rows, seed, "train", notes, label)
    notes += _mixture_notes(data, train)
    if validation is None:
        return Splits(train.examples, None, tuple(notes), train.place, mixture=train.mixture)
    validation = _limit(validation, data.max_validation_rows, seed, "validation", notes)
    return Splits(
        *(train.examples, validation.examples, tuple(notes)),
        *(train.place, validation.place, train.mixture),
    )


def _stream_splits(data: DataConfig, seed: int, columns: Mapping[str, str]) -> Splits:
    """Return a sample of the training examples, the stream of all, and validation examples."""
    stream = ExampleStream.of(data, seed)
    notes: list[str] = []
    held_out: FileExamples | None = None
    if data.validation is not None:
        cache = TableCache.of(data)
        held_out = _find_validation(data, DatasetDict(), cache)
        notes += cache.notes
    elif data.validation_fraction > 0:
        stream = stream.setting_aside(data.max_validation_rows or SET_ASIDE)
        held_out = stream.set_aside()
        notes.append(
            f"The first {len(held_out.dataset):,} examples were taken for validation "
            "(data.max_validation_rows)."
        )
    train = _split(stream.sample(_SAMPLE), "training", data, f"'{data.train_name}' (data.train)")
    require_columns(train.examples, columns, train.place)
    notes.append(
        "Training examples are read when they are needed, in an order drawn from a buffer of "
        f"{data.shuffle_buffer:,} (data.streaming, data.shuffle_buffer)."
    )
    if held_out is None:
        return Splits(train.examples, None, tuple(notes), train.place, stream=stream)
    where = f"'{data.validation or data.train_name}' (validation split)"
    validation = _split(held_out, "validation", data, where)
    validation = _limit(validation, data.max_validation_rows, seed, "validation", notes)
    return Splits(
        *(train.examples, validation.examples, tuple(notes)),
        *(train.place, validation.place),
        stream=stream,
    )


def _read_training(
    data: DataConfig, cache: TableCache
) -> tuple[FileExamples | DatasetDict, Mixture | None]:
    """Return the training data, and the mixture of sources if their weights differ from 1."""
    if isinstance(data.train, str):
        names = [data.train, *([] if data.validation is None else [data.validation])]
        require_hub_data(data.subset, names, "data.subset")
        return read_source(data.train, data.subset, "data.train", data.delimiter, cache), None
    if data.subset is not None:
        raise ConfigError(
            f"Sources have their own subsets: got data.subset='{data.subset}' beside a list in "
            "data.train, expected it in the sources of hub datasets. Move it there."
        )
    found, mixture = read_sources(data.train, data, cache)
    return found, mixture if any(weight != 1 for weight in mixture.weights) else None


def _mixture_notes(data: DataConfig, train: _Split) -> list[str]:
    if train.mixture is None or isinstance(data.train, str):
        return []
    drawn = [
        f"{count:,} of '{first_few(source.names, 2)}'"
        for count, source in zip(train.mixture.counts(), data.train, strict=True)
    ]
    return [f"An epoch draws {sum(train.mixture.counts()):,} examples: {', '.join(drawn)}."]


def load_validation(
    data: DataConfig,
    seed: int,
    label: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Splits:
    """Read only the validation examples that `data.validation` names; see `load_splits`.

    A trainer cannot be built without training examples, so a few of these stand in for them.
    """
    _check_delimiter(data)
    with hiding_progress_bars():
        cache = TableCache.of(data)
        found = _find_validation(data, DatasetDict(), cache)
    if found is None:
        raise ConfigError(
            "There are no examples to read: got no data.validation, expected a file or a dataset. "
            "Name one."
        )
    notes = [*cache.notes, *found.notes]
    split = _split(found, "validation", data, f"'{data.validation}' (data.validation)")
    require_columns(split.examples, columns or {}, split.place)
    split = _limit(split, data.max_validation_rows, seed, "validation", notes)
    few = split.select(np.arange(min(_STAND_INS, len(split.examples))))
    return Splits(
        *(few.examples, split.examples, tuple(notes), few.place, split.place),
        only_validation=True,
    )


def _check_delimiter(data: DataConfig) -> None:
    names = [*data.train_names, *([] if data.validation is None else [data.validation])]
    if data.delimiter is not None and not any(n.lower().endswith(TEXT_TABLES) for n in names):
        raise ConfigError(
            f"Only csv files have a delimiter: got data.delimiter='{data.delimiter}' for "
            f"{' and '.join(repr(name) for name in names)}, expected a file that ends in "
            f"{' or '.join(TEXT_TABLES)}. Leave it out."
        )


def _split(found: FileExamples, kind: str, data: DataConfig, where: str) -> _Split:
    if not len(found.dataset):
        raise DataError(no_examples(where))
    place = _place(kind, data)
    examples = found.dataset
    if data.label_separator is not None:
        examples = split_texts(examples, data.label, data.label_separator)
    return _Split(
        examples, Place(place.name, found.numbers, found.lines, found.files, found.file_of)
    )


def _place(kind: str, data: DataConfig) -> Place:
    source = data.train_name if kind == "training" else data.validation or data.train_name
    return Place(f"the {kind} examples of '{source}'")


def _find_validation(
    data: DataConfig, source: FileExamples | DatasetDict, cache: TableCache
) -> FileExamples | None:
    """Return the validation examples that the recipe names or the dataset has, if any."""
    key = "data.validation_split"
    if data.validation is not None:
        key_of_file = "data.validation"
        other = read_source(data.validation, data.subset, key_of_file, data.delimiter, cache)
        if isinstance(other, DatasetDict) and data.validation_split is None and len(other) == 1:
            return FileExamples(next(iter(other.values())))
        split, is_given = data.validation_split or "validation", data.validation_split is not None
        return pick_split(other, split, data.validation, key, is_given=is_given)
    if data.validation_split is not None:
        if isinstance(source, FileExamples):
            raise DataError(
                f"No such split in {key}: got '{data.validation_split}', but "
                f"'{data.train_name}' is one table without splits. Name the validation file in "
                f"data.validation, or leave {key} out and examples are taken by "
                "data.validation_fraction."
            )
        return pick_split(source, data.validation_split, data.train_name, key)
    if (
        isinstance(source, DatasetDict)
        and "validation" in source
        and data.train_split != "validation"
    ):
        return FileExamples(source["validation"])
    return None


def _hold_out(
    train: _Split, data: DataConfig, seed: int, label: str | None, where: str
) -> tuple[_Split, _Split, str]:
    """Hold out a share of the training examples for validation."""
    count = len(train.examples)
    if count < 2:
        raise DataError(
            f"No validation examples can be taken from {where}: got {count} example, expected at "
            "least 2. Add examples, name data.validation, or set data.validation_fraction=0."
        )
    wanted = min(max(1, round(data.validation_fraction * count)), count - 1)
    labels = read_labels(train.examples, label)
    generator = np.random.default_rng(seed)
    if labels is None:
        taken = generator.permutation(count)[:wanted]
    else:
        taken = hold_out(labels, wanted, generator)
    if not len(taken):
        raise DataError(
            f"No validation examples can be taken from {where}: each of the {count} examples "
            f"has a label in '{label}' that no other has, and training needs it. Add examples, "
            "name data.validation, or set data.validation_fraction=0."
        )
    kept = np.setdiff1d(np.arange(count), taken)
    share = f", stratified by '{label}'" if labels is not None and labels.is_single else ""
    note = (
        f"{len(taken)} of {count} training examples were taken for validation (seed {seed}{share})."
    )
    return train.select(kept), train.select(np.sort(taken)), note


def _language_columns(data: DataConfig) -> dict[str, str]:
    """Return the columns that the examples of a language model may have, by their keys."""
    keys = ("text", "prompt", "completion", "messages", "chosen", "rejected")
    return {key: getattr(data, key) for key in keys}


def _limit(
    split: _Split,
    most: int | None,
    seed: int,
    kind: str,
    notes: list[str],
    label: str | None = None,
) -> _Split:
    """Keep a random selection of examples, in their order: a file may be sorted by label."""
    count = len(split.examples)
    if most is None or count <= most:
        return split
    order = np.random.default_rng(seed).permutation(count)
    labels = read_labels(split.examples, label)
    chosen = order[:most] if labels is None else keep_labels(labels, order, most)
    notes.append(f"{most} of {count} {kind} examples were kept (data.max_{kind}_rows).")
    return split.select(np.sort(chosen))

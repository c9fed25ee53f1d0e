"""Training examples that are read while training needs them, in a random order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from torch.utils.data import IterableDataset

from lorakit.data.reading.columns import take_columns
from lorakit.data.reading.files import file_parts, no_examples
from lorakit.data.reading.positions import Place
from lorakit.data.reading.several import expand_glob, join_examples
from lorakit.data.reading.table import FileExamples
from lorakit.errors import DataError, MissingFileError
from lorakit.recipes.data_names import is_glob

if TYPE_CHECKING:
    from lorakit.recipes.data_section import DataConfig

SET_ASIDE = 1000
"""Number of examples that are held out for validation if the recipe does not say."""
_PART_EXAMPLES = 1000


@dataclass(frozen=True)
class StreamedSource:
    """Files of one source."""

    files: tuple[Path, ...]
    key: str
    """The recipe key that names them."""
    weight: float = 1.0
    columns: Mapping[str, str] | None = None
    """Columns to take, by their new names; None takes all."""
    delimiter: str | None = None
    set_aside: int = 0
    """Number of examples at the beginning that are for validation."""

    def parts(self) -> Iterator[tuple[Dataset, Place]]:
        """Yield the examples of one pass after those set aside, in the order of the files."""
        left = self.set_aside
        for path in self.files:
            first = 0
            for part in file_parts(path, self.key, self.delimiter, _PART_EXAMPLES):
                size = len(part.dataset)
                skipped = min(left, size)
                left -= skipped
                if skipped < size:
                    chosen = np.arange(skipped, size)
                    name = f"the training examples of '{path}'"
                    place = Place(name, np.arange(first, first + size), part.lines)
                    examples = take_columns(part.dataset, self.columns, self.key, str(path))
                    yield examples.select(chosen), place.select(chosen)
                first += size

    def first(self, number: int) -> FileExamples:
        """Return the first examples, those set aside included."""
        found: list[FileExamples] = []
        names: list[str] = []
        for path in self.files:
            for part in file_parts(path, self.key, self.delimiter, number):
                examples = take_columns(part.dataset, self.columns, self.key, str(path))
                taken = examples.select(range(min(number, len(examples))))
                lines = None if part.lines is None else part.lines[: len(taken)]
                found.append(FileExamples(taken, lines))
                names.append(str(path))
                number -= len(taken)
                if number <= 0:
                    return join_examples(found, names, "Files")
        if not found:
            raise DataError(no_examples(f"'{self.files[0]}' ({self.key})"))
        return join_examples(found, names, "Files")


@dataclass(frozen=True)
class ExampleStream:
    """The training examples of a recipe, as they are in the files."""

    sources: tuple[StreamedSource, ...]
    shuffle_buffer: int
    seed: int

    @classmethod
    def of(cls, data: DataConfig, seed: int) -> ExampleStream:
        """Return the stream that a recipe names.

        Raises:
            MissingFileError: A file does not exist, or a source is not a file.
            DataError: A file is empty.
        """
        if isinstance(data.train, str):
            files = _files((data.train,), "data.train")
            sources = [StreamedSource(files, "data.train", delimiter=data.delimiter)]
        else:
            sources = [
                StreamedSource(
                    _files(one.names, f"data.train[{number}].path"),
                    f"data.train[{number}]",
                    one.weight,
                    one.columns,
                    data.delimiter,
                )
                for number, one in enumerate(data.train)
            ]
        return cls(tuple(sources), data.shuffle_buffer, seed)

    def files_state(self) -> list[tuple[int, int]]:
        """Return the size in bytes and the time of the last change, in ns, of each file."""
        found = [path.stat() for source in self.sources for path in source.files]
        return [(one.st_size, one.st_mtime_ns) for one in found]

    def setting_aside(self, examples: int) -> ExampleStream:
        """Return the stream without the first examples, about as many of each source."""
        each = -(-examples // len(self.sources))
        return replace(
            self, sources=tuple(replace(source, set_aside=each) for source in self.sources)
        )

    def set_aside(self) -> FileExamples:
        """Return the examples that are for validation."""
        return self._join_sources([source.first(source.set_aside) for source in self.sources])

    def sample(self, examples: int) -> FileExamples:
        """Return some training examples, about as many of each source.

        Raises:
            DataError: There are none besides those set aside, or the sources' columns differ.
        """
        each = -(-examples // len(self.sources))
        found = []
        for source in self.sources:
            whole = source.first(source.set_aside + each)
            chosen = np.arange(source.set_aside, len(whole.dataset))
            if not len(chosen):
                raise DataError(
                    f"No training examples are left in '{source.files[0]}' ({source.key}): got "
                    f"{len(whole.dataset)}, all set aside for validation, expected more. Name "
                    "data.validation, or set data.max_validation_rows."
                )
            found.append(whole.select(chosen))
        return self._join_sources(found)

    def _join_sources(self, found: list[FileExamples]) -> FileExamples:
        names = [str(source.files[0]) for source in self.sources]
        return join_examples(found, names, "Sources")


class EncodedStream(IterableDataset[dict[str, Any]]):
    """The encoded examples of a stream, without end.

    A source whose files are at their end begins again, in another order. The order depends on the
    seed alone, so that a resumed run, which skips what it had, continues with the same examples.
    Each source has a buffer: an example leaves it from a random place, where the next one enters.
    """

    def __init__(
        self,
        stream: ExampleStream,
        encode: Callable[[Dataset, Place], Iterable[dict[str, Any]]],
    ):
        """Create the stream.

        Args:
            stream: The examples.
            encode: Encodes some of them, which come from the given place; it may leave some out.
        """
        super().__init__()
        self.stream, self._encode = stream, encode
        self._read = self._left_out = 0

    def seeded(self, seed: int) -> EncodedStream:
        """Return the stream in the order of another seed."""
        return EncodedStream(replace(self.stream, seed=seed), self._encode)

    def left_out_note(self) -> str | None:
        """Return a note on the examples that were left out so far, if any."""
        if not self._left_out:
            return None
        return (
            f"{self._left_out:,} of the {self._read:,} streamed examples that were read were left "
            "out: within data.max_length none of their tokens counts, or both answers are the same."
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        stream = self.stream
        sources = [
            self._endless(source, np.random.default_rng((stream.seed, number)))
            for number, source in enumerate(stream.sources)
        ]
        if len(sources) == 1:
            yield from sources[0]
        weights = np.array([source.weight for source in stream.sources])
        generator = np.random.default_rng((stream.seed, len(sources)))
        while True:
            yield next(sources[generator.choice(len(sources), p=weights / weights.sum())])

    def _endless(
        self, source: StreamedSource, generator: np.random.Generator
    ) -> Iterator[dict[str, Any]]:
        for number in count(1):
            buffer: list[dict[str, Any]] = []
            for part, place in source.parts():
                encoded = list(self._encode(part, place))
                self._read += len(part)
                self._left_out += len(part) - len(encoded)
                for example in encoded:
                    if len(buffer) < self.stream.shuffle_buffer:
                        buffer.append(example)
                        continue
                    at = int(generator.integers(len(buffer)))
                    yield buffer[at]
                    buffer[at] = example
            if not buffer:
                raise DataError(
                    f"Nothing can be learnt from '{source.files[0]}' ({source.key}): got no "
                    f"example with a token that counts in pass {number}, expected at least one. "
                    "Check the file, or raise data.max_length."
                )
            for at in generator.permutation(len(buffer)):
                yield buffer[at]


def _files(names: Iterable[str], key: str) -> tuple[Path, ...]:
    """Return the files that names and globs stand for."""
    found: list[Path] = []
    for name in names:
        paths = expand_glob(name, key) if is_glob(name) else [name]
        for path in (Path(one).expanduser() for one in paths):
            if not path.is_file():
                raise MissingFileError(
                    f"Only files can be streamed: got '{name}' in {key}, expected a csv, jsonl or "
                    "parquet file that exists, or a glob of such. Check the path, or leave "
                    "data.streaming out."
                )
            if not path.stat().st_size:
                raise DataError(no_examples(f"'{path}' ({key})"))
            found.append(path)
    return tuple(found)

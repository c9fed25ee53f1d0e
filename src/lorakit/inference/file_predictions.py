"""Predict a file of inputs: its rows with new columns, in batches, resumable after any end."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
from datasets import Dataset

from lorakit.adapters.inference_settings import SETTINGS_FILE
from lorakit.config import MULTI_LABEL
from lorakit.data.reading.sources import read_source
from lorakit.data.reading.table import FileExamples
from lorakit.errors import ConfigError, DataError
from lorakit.files.atomic import leftovers
from lorakit.files.disks import reporting_disk_errors
from lorakit.inference.input_columns import InputColumns, find_input_columns
from lorakit.inference.loaded import LoadedModel
from lorakit.inference.prediction import (
    Classification,
    LabelSet,
    Numbers,
    count_truncated,
    predicts_numbers,
)
from lorakit.inference.prediction_output import (
    label_separator,
    require_free,
    require_new,
    write_predictions,
)
from lorakit.inference.predictions import predict
from lorakit.recipes.data_names import TEXT_TABLES
from lorakit.recipes.recipe import DataConfig

_BATCHES_AT_ONCE = {True: 32, False: 4}
"""Batches between two writes, by whether a batch takes one forward pass; sorted by length."""


@dataclass(frozen=True)
class FilePredictions:
    """What was written.

    Attributes:
        output: The file.
        rows: Its rows.
        without_input: Rows whose input is missing; their prediction is empty.
        resumed: Rows that an earlier, interrupted call had predicted.
        columns: The new columns.
    """

    output: Path
    rows: int
    without_input: int
    resumed: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class PredictionSettings:
    """How a file is predicted.

    Attributes:
        probabilities: Whether every label's probability is written, for classes.
        prefix: Begins the names of new columns.
        batch_rows: Largest number of inputs in a batch.
        max_new_tokens: Maximum length of a new text; None takes that of training, or 64.
        use_base: Whether the base answers without the adapter.
    """

    probabilities: bool = False
    prefix: str = ""
    batch_rows: int = 32
    max_new_tokens: int | None = None
    use_base: bool = False


def predict_file(
    loaded: LoadedModel,
    source: str | Path,
    output: str | Path,
    settings: PredictionSettings | None = None,
    *,
    data: DataConfig | None = None,
    identity: str = "",
    on_progress: Callable[[int, int], None] = lambda done, rows: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> FilePredictions:
    """Predict all rows of a file and write them with new columns; other columns stay.

    What has been predicted is kept beside the output until it is finished. A call with the same
    file, adapter and settings goes on from there.

    Args:
        loaded: An adapter on its base.
        source: csv, tsv, json, jsonl or parquet file.
        output: csv, tsv, jsonl or parquet file that does not exist yet.
        settings: See above.
        data: Names of columns; None takes the usual ones.
        identity: What tells this adapter from others, so that an interrupted call goes on only
            with the same.
        on_progress: Gets the number of predicted rows and of all rows.
        on_note: Gets sentences about how the file is read.

    Raises:
        ConfigError: The output exists, or its ending is unknown.
        DataError: The file cannot be read or lacks columns, a new column has the name of one that
            is there, or another call writes the same output.
    """
    settings = PredictionSettings() if settings is None else settings
    source, output = Path(source), Path(output)
    require_new(output)
    names = data if data is not None else DataConfig(train=str(source))
    found: Any = read_source(str(source), None, "the file to predict", names.delimiter)
    if not isinstance(found, FileExamples):
        raise DataError(
            f"Cannot predict '{source}': got a dataset with several splits, expected one table. "
            "Name a file."
        )
    examples = found.dataset
    columns = find_input_columns(loaded, examples, names)
    for note in (*found.notes, *columns.notes):
        on_note(note)
    new_columns = _new_columns(loaded, settings, columns)
    require_free(new_columns, examples, source)
    key = {**asdict(settings), "file": _digest(source), "adapter": identity, "columns": new_columns}
    key |= {"inputs": columns.names, "delimiter": names.delimiter, "base": loaded.base}
    key["stored"] = sorted({str(weight.dtype) for weight in loaded.model.parameters()})
    truncated = 0
    is_one_pass = loaded.labels is not None
    at_once = _BATCHES_AT_ONCE[is_one_pass] * settings.batch_rows
    with _partial_predictions(output, key, len(examples), at_once) as partial:
        resumed = partial.rows
        on_progress(partial.rows, len(examples))
        for begin in range(0, len(examples), at_once):
            end = min(begin + at_once, len(examples))
            inputs = _inputs(examples, columns, (begin, end), source)
            truncated += count_truncated(loaded, [one for one in inputs if one is not None])
            if end <= resumed:
                continue
            partial.append(_predictions(loaded, inputs, settings))
            on_progress(end, len(examples))
        made = partial.read()
        if names.label_separator is None and loaded.settings.problem_type == MULTI_LABEL:
            separator = label_separator(loaded.labels or ())
            names = names.model_copy(update={"label_separator": separator})
            if output.suffix.lower() in TEXT_TABLES:
                on_note(f"Labels in a cell are separated by '{separator}' (data.label_separator).")
        write_predictions(output, examples, new_columns, made, names)
        partial.remove()
    if truncated:
        on_note(f"Inputs that were cut to {loaded.max_length:,} tokens: {truncated:,}.")
    empty = sum(1 for values in made if values is None)
    return FilePredictions(output, len(examples), empty, resumed, tuple(new_columns))


def _inputs(
    examples: Dataset, columns: InputColumns, rows: tuple[int, int], source: Path
) -> list[Any]:
    """Return the inputs of some rows; None for one without."""
    chosen: Any = examples.select_columns(list(columns.names.values()))
    return [
        columns.input_of(example, number, f"'{source}'")
        for number, example in enumerate(chosen.select(range(*rows)), start=rows[0] + 1)
    ]


def _predictions(
    loaded: LoadedModel, inputs: Sequence[Any], settings: PredictionSettings
) -> list[list[Any] | None]:
    """Return the values of the new columns for some inputs; None where there is no input."""
    there = [given for given in inputs if given is not None]
    made = iter(
        predict(
            loaded,
            there,
            settings.use_base,
            batch_rows=settings.batch_rows,
            max_new_tokens=settings.max_new_tokens,
        )
    )
    return [
        None if given is None else _values(next(made), loaded.labels or (), settings)
        for given in inputs
    ]


def _new_columns(
    loaded: LoadedModel, settings: PredictionSettings, columns: InputColumns
) -> list[str]:
    names = ["prediction"]
    is_regression = predicts_numbers(loaded.labels or (), loaded.settings)
    if loaded.labels is not None and not is_regression:
        names.append("probability")
    if "data.text" in columns.names and loaded.task_type == "TOKEN_CLS":
        names.append("words")
    elif loaded.task_type == "TOKEN_CLS":
        names.append("predicted_words")
    if settings.probabilities:
        if loaded.task_type != "SEQ_CLS" or is_regression:
            got = "numbers" if is_regression else f"task {loaded.task_type}"
            raise ConfigError(
                f"There are no probabilities of every label: got {got}, expected classes or "
                "labels of SEQ_CLS. Leave --probabilities out."
            )
        names += [f"probability_{label}" for label in loaded.labels or ()]
    return [settings.prefix + name for name in names]


def _values(prediction: Any, labels: Sequence[str], settings: PredictionSettings) -> list[Any]:
    if isinstance(prediction, str):
        return [prediction]
    every = labels if settings.probabilities else ()
    if isinstance(prediction, Classification):
        known = prediction.probabilities
        return [prediction.label, prediction.probability, *(known[label] for label in every)]
    if isinstance(prediction, LabelSet):
        known = prediction.probabilities
        shares = [known[label] for label in prediction.labels]
        return [list(prediction.labels), shares, *(known[label] for label in every)]
    if isinstance(prediction, Numbers):
        numbers = list(prediction.values.values())
        return [numbers[0] if len(numbers) == 1 else numbers]
    return [
        [word.tag for word in prediction],
        [word.probability for word in prediction],
        [word.word for word in prediction],
    ]


# ---- what has been predicted so far ----


class _Partial:
    """A file with the state of the call in the first line, and a line for each predicted row.

    Args:
        path: The file.
        key: The state of the call.
        rows: Number of rows to predict.
        at_once: Rows between two writes. Of a write that was interrupted nothing is kept, so that
            its rows share batches as if it had not been: the last bits depend on the batch.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], rows: int, at_once: int):
        self.path = path
        self._key = (json.dumps(key, sort_keys=True, ensure_ascii=False) + "\n").encode()
        lengths = [length for length, _ in self._lines()]
        found = max(len(lengths) - 1, 0)
        self.rows = found if found == rows else found - found % at_once
        with reporting_disk_errors(path):
            if lengths:
                os.truncate(path, sum(lengths[: self.rows + 1]))
            else:
                path.write_bytes(self._key)

    def _lines(self) -> Iterator[tuple[int, Any]]:
        """Yield the length and the value of each line, up to one that is cut off or damaged."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file):
                if number == 0 and line != self._key:
                    return
                try:
                    value = json.loads(line)
                except ValueError:
                    return
                if not line.endswith(b"\n"):
                    return
                yield len(line), value

    def append(self, rows: Sequence[Any]) -> None:
        """Add the values of rows, so that they survive a crash."""
        with reporting_disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        self.rows += len(rows)

    def read(self) -> list[Any]:
        """Return the values of all rows."""
        return [value for _, value in self._lines()][1:]

    def remove(self) -> None:
        """Delete the file; the output has its contents."""
        self.path.unlink()


@contextmanager
def _partial_predictions(
    output: Path, key: Mapping[str, Any], rows: int, at_once: int
) -> Iterator[_Partial]:
    lock_file = output.with_name(f".{output.name}.lock")
    lock = filelock.FileLock(lock_file, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise DataError(
            f"Cannot write '{output}': another command is predicting into it. Wait for it, or name "
            "another output."
        ) from None
    try:
        for left in leftovers(output.parent, [output.name]):  # by a call that was killed
            left.unlink()
        yield _Partial(output.with_name(f".{output.name}.partial"), key, rows, at_once)
    finally:
        lock_file.unlink(missing_ok=True)  # while it is held: the next call creates another file
        lock.release()


def adapter_identity(directory: Path) -> str:
    """Return what tells an adapter from others, also from an earlier one in the same directory."""
    names = ("adapter_config.json", "adapter_model.safetensors", SETTINGS_FILE)
    return " ".join(_digest(directory / name) for name in names if (directory / name).is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

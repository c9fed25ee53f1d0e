"""The file that a prediction writes: the rows as they were read, with new columns."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
from datasets import Dataset

from lorakit.errors import ConfigError, DataError, did_you_mean, escaped, first_few
from lorakit.files.atomic import replacing_file
from lorakit.recipes.data_names import ENDINGS, TEXT_TABLES
from lorakit.recipes.recipe import DataConfig


def require_new(output: Path) -> None:
    """Refuse an output that exists or cannot be written.

    Raises:
        ConfigError: It exists, its ending is unknown, or its folder does not exist.
    """
    endings = tuple(ending for ending in ENDINGS if ending != ".json")
    if output.suffix.lower() not in endings:
        raise ConfigError(
            f"Cannot write '{output}': got the ending '{output.suffix}', expected one of "
            f"{', '.join(endings)}.{did_you_mean(output.suffix, endings)} Name such a file."
        )
    if output.exists():
        raise ConfigError(
            f"Cannot write '{output}': it exists already, expected a new file. Remove it, or name "
            "another output."
        )
    if not output.parent.is_dir():
        raise ConfigError(
            f"Cannot write '{output}': there is no folder '{output.parent}', expected an existing "
            "one. Create it first."
        )


def require_free(new_columns: Sequence[str], examples: Dataset, source: Path) -> None:
    """Refuse to add columns that a file has already.

    Raises:
        ConfigError: Names them.
    """
    taken = [name for name in new_columns if name in examples.column_names]
    if taken:
        raise ConfigError(
            f"Cannot add columns to '{source}': got {first_few(map(escaped, taken))} among its "
            "columns already, expected other names. Give --prefix, such as --prefix new_."
        )


def label_separator(labels: Sequence[str]) -> str:
    """Return what separates several labels in a cell; a space unless a label has one.

    >>> label_separator(("red", "blue")), label_separator(("dark red", "blue"))
    (' ', '|')
    """
    return next((mark for mark in " |;," if not any(mark in label for label in labels)), " ")


def write_predictions(
    output: Path,
    examples: Dataset,
    new_columns: Sequence[str],
    made: Sequence[list[Any] | None],
    data: DataConfig,
) -> None:
    """Write a file with the examples and new columns.

    Args:
        output: The file; its ending names the format.
        examples: The rows as they were read.
        new_columns: Names of the columns to add.
        made: Their values in each row; None for a row without an input.
        data: Section of the recipe that says how texts are read: the delimiter, the separator of
            labels.

    Raises:
        DataError: A cell of a text file would hold a list of lists or an object.
    """
    with replacing_file(output) as path:
        if output.suffix.lower() == ".parquet":
            _write_parquet(path, examples, new_columns, made)
        else:
            is_table = output.suffix.lower() in TEXT_TABLES
            rows = _rows(examples, new_columns, made)
            if is_table:
                delimiter = "\t" if output.suffix.lower() == ".tsv" else data.delimiter or ","
                joints = {new_columns[0]: data.label_separator or " "}  # as training reads labels
                header = [*examples.column_names, *new_columns]
                _write_csv(path, header, rows, delimiter, joints, output)
            else:
                with path.open("w", encoding="utf-8") as file:
                    for row in rows:
                        file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _rows(
    examples: Any, new_columns: Sequence[str], made: Sequence[list[Any] | None]
) -> Iterator[dict[str, Any]]:
    nothing = [None] * len(new_columns)
    for example, values in zip(examples, made, strict=True):
        yield {**example, **dict(zip(new_columns, values or nothing, strict=True))}


def _write_csv(
    path: Path,
    header: Sequence[str],
    rows: Iterator[dict[str, Any]],
    delimiter: str,
    joints: Mapping[str, str],
    output: Path,
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(header)
        for row in rows:
            writer.writerow(
                _cell(row[name], name, joints.get(name, " "), output) for name in header
            )


def _cell(value: Any, name: str, joint: str, output: Path) -> str:
    if value is None:
        return ""
    if isinstance(value, list | dict):
        if all(isinstance(one, str | float) for one in value) and isinstance(value, list):
            return joint.join(map(str, value))
        raise DataError(
            f"Cannot write '{output}': the column '{escaped(name)}' holds lists or objects, "
            "expected values that fit into a cell. Write a .jsonl or .parquet file."
        )
    return str(value)


def _write_parquet(
    path: Path, examples: Any, new_columns: Sequence[str], made: Sequence[list[Any] | None]
) -> None:
    table: pa.Table = examples.with_format("arrow")[:]
    for place, name in enumerate(new_columns):
        values = [None if row is None else row[place] for row in made]
        table = table.append_column(name, pa.array(values))
    parquet.write_table(table.replace_schema_metadata(None), path)
